//! From the fields of a request to the engine's [`Request`].

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use ferrum_engine::{Constraint, ContextFull, ReadPrompt, Request, SamplingParams, UserId};
use serde_json::Value;

use crate::{
    app::App,
    error::{ApiError, Result},
    fields::Fields,
    grammars,
    limits::Client,
    structured::{self, Wanted},
};

/// Most answers to one request.
pub const MAX_CHOICES: u64 = 128;

/// The fields that change what is generated, as all OpenAI routes have them.
#[derive(Clone, Debug)]
pub struct Generation {
    pub sampling: SamplingParams,
    pub logit_bias: Vec<(u32, f64)>,
    /// What the answer must look like
    pub grammar: Option<Wanted>,
    /// `grammar`, compiled
    pub constraint: Option<Constraint>,
    pub max_tokens: Option<u64>,
    pub stops: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub priority: i32,
    pub client: Client,
    pub user: UserId,
    /// Answers wanted
    pub n: usize,
    /// Report the log-probability of every token, and this many alternatives; not read here, because the routes differ
    pub logprobs: Option<usize>,
    /// What is wanted of the prompt; not read here
    pub read_prompt: Option<ReadPrompt>,
    /// Whether special tokens are left out of the text
    pub skip_special: bool,
}

impl Generation {
    /// # Errors
    /// Naming the field that is wrong or not supported.
    pub fn read(fields: &mut Fields, defaults: &SamplingParams, client: Client) -> Result<Self> {
        let n = fields.count("n", 1, MAX_CHOICES)?.unwrap_or(1);
        let priority = fields.i64("priority")?.unwrap_or(0);
        let priority = i32::try_from(priority).map_err(|_| ApiError::invalid("priority", "`priority` must fit 32 bits"))?;
        let seed = fields.i64("seed")?.map(|seed| seed as u64);
        Ok(Self {
            sampling: SamplingParams {
                temperature: fields.f64("temperature")?.unwrap_or(defaults.temperature),
                top_k: fields.i64("top_k")?.unwrap_or(defaults.top_k),
                top_p: fields.f64("top_p")?.unwrap_or(defaults.top_p),
                min_p: fields.f64("min_p")?.unwrap_or(defaults.min_p),
                repetition_penalty: fields.f64("repetition_penalty")?.unwrap_or(defaults.repetition_penalty),
                presence_penalty: fields.f64("presence_penalty")?.unwrap_or(defaults.presence_penalty),
                frequency_penalty: fields.f64("frequency_penalty")?.unwrap_or(defaults.frequency_penalty),
                seed: seed.or(defaults.seed),
            },
            logit_bias: structured::logit_bias(fields)?,
            grammar: structured::read(fields)?,
            constraint: None,
            max_tokens: match fields.u64("max_completion_tokens")? {
                Some(n) => Some(n),
                None => fields.u64("max_tokens")?,
            },
            stops: fields.strings("stop")?,
            stop_token_ids: fields.ids("stop_token_ids")?.unwrap_or_default(),
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            priority,
            user: UserId { account: client.account(), user: fields.string("user")?.map_or(0, hash) },
            client,
            n,
            logprobs: None,
            read_prompt: None,
            skip_special: fields.bool("skip_special_tokens")?.unwrap_or(true),
        })
    }

    /// The same with its grammar compiled.
    ///
    /// # Errors
    /// As [`grammars::compile`].
    pub async fn compiled(&self, app: &Arc<App>) -> Result<Self> {
        let constraint = match &self.grammar {
            Some(wanted) => Some(grammars::compile(app, wanted).await?),
            None => None,
        };
        Ok(Self { constraint, ..self.clone() })
    }

    /// The request of answer `index` to `prompt`: with a seed, every answer draws its own numbers.
    pub fn request(&self, prompt: Vec<u32>, index: usize) -> Request {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(index as u64));
        Request {
            prompt,
            sampling,
            logit_bias: self.logit_bias.clone(),
            constraint: self.constraint.clone(),
            max_tokens: self.max_tokens,
            stop_tokens: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            read_prompt: self.read_prompt,
            on_context_full: if self.max_tokens.is_some() { ContextFull::Refuse } else { ContextFull::Finish },
            priority: self.priority,
            user: self.user,
        }
    }
}

/// The same number for the same name while the process lives.
pub fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Whether to stream, and where the stream says the usage: `stream` and `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    pub stream: bool,
    /// In an event of its own behind the others
    pub include_usage: bool,
    /// Up to there, in every event
    pub continuous_usage: bool,
}

impl Streaming {
    /// # Errors
    /// Naming the field that is wrong.
    pub fn read(fields: &mut Fields) -> Result<Self> {
        let stream = fields.bool("stream")?.unwrap_or(false);
        let Some(options) = fields.take("stream_options") else { return Ok(Self { stream, ..Self::default() }) };
        if !stream {
            return Err(ApiError::invalid("stream_options", "`stream_options` is only allowed with `stream: true`"));
        }
        let options = Fields::of(options, "stream_options")?;
        options.only("include_obfuscation", &Value::Bool(false))?;
        let wants = |field: &str| options.bool(field).map(|wanted| wanted.unwrap_or(false));
        Ok(Self { stream, include_usage: wants("include_usage")?, continuous_usage: wants("continuous_usage_stats")? })
    }
}
