//! A request, and the one place where its numbers are checked.

use std::sync::Arc;

use ferrum_kernels::ops::{LogitBias, SampleParams};
use ferrum_models::Pooling;

use crate::{
    error::SubmitError,
    grammar::Constraint,
    sequence::{ContextFull, NewSequence},
    users::UserId,
};

/// Most alternatives reported per token.
pub const MAX_LOGPROBS: usize = 128;
/// Most biases of one request.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Most stop tokens of one request.
pub const MAX_STOP_TOKENS: usize = 256;
/// Most tokens generated for one request; positions are 32-bit on the device.
pub const MAX_TOKENS: u64 = 1 << 30;

/// How the next token is chosen. The default is greedy.
///
/// The fields are wider than what the device takes, so that any number a client can send arrives here and is refused by name.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 to 100; below 0.0001: the likeliest token
    pub temperature: f64,
    /// Draw among this many likeliest tokens; 0 or −1: all
    pub top_k: i64,
    /// Draw among the fewest tokens whose probabilities reach this; 1: all
    pub top_p: f64,
    /// Draw among tokens at least this fraction as likely as the likeliest; 0: all
    pub min_p: f64,
    /// Above 0, at most 10; divides the logits of tokens that occurred; 1: off
    pub repetition_penalty: f64,
    /// −2 to 2; subtracted from tokens that were generated; 0: off
    pub presence_penalty: f64,
    /// −2 to 2; subtracted for every time a token was generated; 0: off
    pub frequency_penalty: f64,
    /// The same seed gives the same tokens; `None`: another one for every request
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
        }
    }
}

/// What a caller wants to know of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPrompt {
    /// The log-probability of every token but the first, and this many likeliest alternatives
    Logprobs(usize),
    /// One vector for the whole
    Embedding(Pooling),
}

/// What a caller wants generated.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub sampling: SamplingParams,
    /// Token ids and what is added to their logits before anything else, −100 to 100
    pub logit_bias: Vec<(u32, f64)>,
    /// What the answer must look like. It ends where nothing can follow, or with an end token where one may
    pub constraint: Option<Constraint>,
    /// `None`: until the context is full
    pub max_tokens: Option<u64>,
    /// Tokens that end the answer, besides the model's own
    pub stop_tokens: Vec<u32>,
    /// Whether the model's own end tokens are ordinary tokens here
    pub ignore_eos: bool,
    /// Report the log-probability of every token, and this many likeliest alternatives
    pub logprobs: Option<usize>,
    pub read_prompt: Option<ReadPrompt>,
    pub on_context_full: ContextFull,
    /// Lower values go first
    pub priority: i32,
    /// Whose request it is: where the priority is the same, the next place goes to whoever has been served least
    pub user: UserId,
}

impl Request {
    /// A greedy request that ends with the model's own end tokens or a full context.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            logit_bias: Vec::new(),
            constraint: None,
            max_tokens: None,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            read_prompt: None,
            on_context_full: ContextFull::Finish,
            priority: 0,
            user: UserId::default(),
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`], naming the field.
    pub fn validate(&self, vocab: usize) -> Result<(), SubmitError> {
        let s = &self.sampling;
        number("temperature", s.temperature, 0.0..=100.0)?;
        number("top_p", s.top_p, 0.0..=1.0)?;
        number("min_p", s.min_p, 0.0..=1.0)?;
        number("repetition_penalty", s.repetition_penalty, 1e-4..=10.0)?;
        number("presence_penalty", s.presence_penalty, -2.0..=2.0)?;
        number("frequency_penalty", s.frequency_penalty, -2.0..=2.0)?;
        require(s.top_k >= -1, "top_k", s.top_k, "it must be −1 or 0 for all tokens, or a count")?;
        if let Some(max_tokens) = self.max_tokens {
            let ok = (1..=MAX_TOKENS).contains(&max_tokens);
            require(ok, "max_tokens", max_tokens, &format!("it must be between 1 and {MAX_TOKENS}"))?;
        }
        let of_prompt = if let Some(ReadPrompt::Logprobs(count)) = self.read_prompt { Some(count) } else { None };
        for (field, count) in [("logprobs", self.logprobs), ("prompt_logprobs", of_prompt)] {
            let (count, most) = (count.unwrap_or(0), MAX_LOGPROBS.min(vocab));
            require(count <= most, field, count, &format!("it must be at most {most}"))?;
        }
        let count = self.stop_tokens.len();
        require(count <= MAX_STOP_TOKENS, "stop_tokens", format!("{count} tokens"), &format!("at most {MAX_STOP_TOKENS} are allowed"))?;
        let count = self.logit_bias.len();
        require(count <= MAX_LOGIT_BIAS, "logit_bias", format!("{count} tokens"), &format!("at most {MAX_LOGIT_BIAS} are allowed"))?;
        let mut biased: Vec<u32> = self.logit_bias.iter().map(|(id, _)| *id).collect();
        biased.sort_unstable();
        require(biased.windows(2).all(|w| w[0] != w[1]), "logit_bias", "a token twice", "each token may have one bias")?;
        self.logit_bias.iter().try_for_each(|(_, bias)| number("logit_bias", *bias, -100.0..=100.0))?;
        let ends = !(self.ignore_eos && self.constraint.is_some());
        require(ends, "ignore_eos", "true", "an answer with a grammar ends where the grammar says")?;
        require(!self.prompt.is_empty(), "prompt", "empty", "it must have at least one token")?;
        for (field, ids) in [("prompt", &self.prompt), ("stop_tokens", &self.stop_tokens), ("logit_bias", &biased)] {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return Err(SubmitError::invalid(field, format!("token id {id}"), format!("ids must be below the vocabulary of {vocab}")));
            }
        }
        Ok(())
    }

    /// The part for the device, of a validated request. `position` and `counts_row` are set for every draw.
    pub(crate) fn sample_params(&self, fallback_seed: u64) -> SampleParams {
        let s = &self.sampling;
        let temperature = if s.temperature < 1e-4 { 0.0 } else { s.temperature as f32 };
        SampleParams {
            temperature,
            top_p: s.top_p as f32,
            min_p: s.min_p as f32,
            repetition_penalty: s.repetition_penalty as f32,
            presence_penalty: s.presence_penalty as f32,
            frequency_penalty: s.frequency_penalty as f32,
            top_k: u32::try_from(s.top_k.max(0)).unwrap_or(u32::MAX).min(i32::MAX as u32),
            seed: s.seed.unwrap_or(fallback_seed),
            ..SampleParams::GREEDY
        }
    }

    /// The part for the device, of a validated request.
    pub(crate) fn biases(&self) -> Vec<LogitBias> {
        self.logit_bias.iter().map(|&(token, bias)| LogitBias { token, bias: bias as f32 }).collect()
    }

    /// Whether earlier tokens change the choice.
    pub(crate) fn has_penalties(&self) -> bool {
        let s = &self.sampling;
        s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0
    }

    /// Whether several of its tokens can be drawn in one step. The counts that penalties look at and the state of a grammar
    /// are those of one row.
    pub(crate) fn may_speculate(&self) -> bool {
        !self.has_penalties() && self.constraint.is_none()
    }

    /// The part for the scheduler, of a validated request; whether it speculates is for the caller to say.
    pub(crate) fn into_sequence(self, end_tokens: &Arc<[u32]>, tag: usize) -> NewSequence {
        // Every step looks at these, and those of all requests are in one place where they are the same.
        let stop_tokens = match (self.ignore_eos, self.stop_tokens.is_empty()) {
            (false, true) => Arc::clone(end_tokens),
            (false, false) => [&self.stop_tokens[..], end_tokens].concat().into(),
            (true, _) => self.stop_tokens.into(),
        };
        NewSequence {
            // Only what goes through the model can be read.
            reuses: matches!(self.read_prompt, None | Some(ReadPrompt::Embedding(Pooling::Last))),
            prompt: self.prompt,
            max_tokens: self.max_tokens.unwrap_or(MAX_TOKENS).min(MAX_TOKENS) as usize,
            stop_tokens,
            priority: self.priority,
            user: self.user,
            on_context_full: self.on_context_full,
            speculates: false,
            tag,
        }
    }
}

fn number(field: &'static str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<(), SubmitError> {
    // NaN is in no range.
    require(range.contains(&value), field, value, &format!("it must be between {} and {}", range.start(), range.end()))
}

fn require(ok: bool, field: &'static str, got: impl ToString, requirement: &str) -> Result<(), SubmitError> {
    if ok { Ok(()) } else { Err(SubmitError::invalid(field, got, requirement)) }
}
