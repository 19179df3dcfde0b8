//! `POST /v1/completions`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension, Json,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use bytes::Bytes;
use ferrum_engine::{FinishReason, MAX_LOGPROBS, ReadPrompt, Reading, TokenLogprobs};
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use serde_json::{Value, json};

use super::{
    Head, data, failed,
    input::{self, Text},
    logprobs,
};
use crate::{
    app::{App, Served},
    error::{ApiError, Result},
    fields::Fields,
    generate::{Answers, Piece, Token, Usage},
    limits::Client,
    openapi::takes,
    sampling::{Generation, MAX_CHOICES, Streaming},
};

const OBJECT: &str = "text_completion";
/// Tokens when the request does not say, as OpenAI documents it.
const DEFAULT_MAX_TOKENS: u64 = 16;

pub async fn create(State(app): State<Arc<App>>, Extension(client): Extension<Client>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body, &takes::COMPLETION)?;
    let model = app.model_named(fields.string("model")?)?;
    let logprobs = fields.count("logprobs", 0, MAX_LOGPROBS as u64)?;
    let streaming = Streaming::read(&mut fields)?;
    let mut generation = Generation::read(&mut fields, &model.sampling, client)?;
    let shape = Shape::read(&fields, &mut generation, logprobs, streaming.stream)?;
    let prompts = input::texts(model, "prompt", fields.take("prompt"))?;
    let mut choices = Vec::with_capacity(prompts.len() * generation.n);
    for prompt in &prompts {
        let echo = || Choice { echo: shape.echo.then(|| prompt.shown(model, generation.skip_special)), ..Choice::default() };
        choices.extend(std::iter::repeat_with(echo).take(generation.n));
    }
    let prompts = prompts.into_iter().map(|prompt| prompt.tokens).collect();
    let answers = Answers::start(&app, model, prompts, &generation).await.map_err(|error| error.renamed(&[("messages", "prompt")]))?;
    let head = Head { streaming, ..Head::new(&app, model, (OBJECT, "cmpl-"), logprobs.is_some()) };
    let completion = Completion { head, answers, choices, shape };
    if streaming.stream {
        return Ok(Sse::new(completion.chunks()).keep_alive(KeepAlive::default()).into_response());
    }
    completion.whole().await
}

/// What the response shows of what was computed.
struct Shape {
    /// The prompt stands in front of the answer
    echo: bool,
    /// `max_tokens: 0`: there is no answer
    prompt_only: bool,
    /// Answers shown to each prompt: the likeliest of `best_of`
    n: usize,
    best_of: usize,
}

impl Shape {
    /// # Errors
    /// Naming the field that is wrong or does not go with another.
    fn read(fields: &Fields, generation: &mut Generation, logprobs: Option<usize>, stream: bool) -> Result<Self> {
        let echo = fields.bool("echo")?.unwrap_or(false);
        let max_tokens = generation.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        let prompt_only = *max_tokens == 0;
        if prompt_only {
            if !echo {
                return Err(ApiError::invalid("max_tokens", "`max_tokens` may only be 0 with `echo: true`"));
            }
            // The step that computes the end of the prompt draws a token in any case.
            *max_tokens = 1;
        }
        let n = generation.n;
        let best_of = fields.count("best_of", 1, MAX_CHOICES)?.unwrap_or(n);
        if best_of < n {
            return Err(ApiError::invalid("best_of", format!("`best_of` must be at least `n`, which is {n}")));
        }
        if best_of > n && stream {
            return Err(ApiError::invalid("best_of", "the best answers are only known at the end, so `best_of` cannot be streamed"));
        }
        generation.n = best_of;
        generation.logprobs = if best_of > n { Some(logprobs.unwrap_or(0)) } else { logprobs };
        generation.read_prompt = logprobs.filter(|_| echo).map(ReadPrompt::Logprobs);
        Ok(Self { echo, prompt_only, n, best_of })
    }
}

/// A response in the making.
struct Completion {
    head: Head,
    answers: Answers,
    choices: Vec<Choice>,
    shape: Shape,
}

/// What is known of one answer.
#[derive(Default)]
struct Choice {
    /// The prompt's text and tokens, until they have been shown
    echo: Option<(String, Vec<u32>)>,
    /// Of the prompt's tokens but the first
    prompt_logprobs: Vec<TokenLogprobs>,
    /// Characters shown so far, as the tokens have them
    offset: usize,
    /// Sum over the generated tokens, and their number
    logprob: (f64, usize),
}

/// What one piece adds to one choice.
#[derive(Default)]
struct Part {
    choice: usize,
    text: String,
    tokens: Vec<Token>,
    finish_reason: Option<&'static str>,
}

impl Text {
    /// The text as it is shown, and the tokens.
    fn shown(&self, model: &Served, skip_special: bool) -> (String, Vec<u32>) {
        let text = self.text.clone().unwrap_or_else(|| model.tokenizer.decode(&self.tokens, skip_special));
        (text, self.tokens.clone())
    }
}

impl Choice {
    /// The log-probability per generated token; an answer without any is the last to be chosen.
    fn score(&self) -> f64 {
        let (sum, tokens) = self.logprob;
        if tokens == 0 { f64::NEG_INFINITY } else { sum / tokens as f64 }
    }

    /// Puts the prompt in front of the first part.
    fn add_echo(&mut self, part: &mut Part) {
        let Some((text, tokens)) = self.echo.take() else { return };
        part.text.insert_str(0, &text);
        // Nothing predicts the first token.
        let logprobs = std::iter::once(None).chain(std::mem::take(&mut self.prompt_logprobs).into_iter().map(Some));
        let tokens = tokens.into_iter().zip(logprobs.chain(std::iter::repeat(None))).map(|(id, logprobs)| Token { id, logprobs });
        part.tokens.splice(..0, tokens);
    }
}

impl Completion {
    /// The next part; `None` after the last.
    async fn next(&mut self) -> Result<Option<Part>> {
        loop {
            let mut part = match self.answers.next().await? {
                None => return Ok(None),
                Some(Piece::Prompt { choice, reading }) => {
                    if let Reading::Logprobs(more) = reading {
                        self.choices[choice].prompt_logprobs.extend(more);
                    }
                    continue;
                }
                Some(Piece::Text { .. }) if self.shape.prompt_only => continue,
                Some(Piece::Text { choice, text, tokens }) => Part { choice, text, tokens, finish_reason: None },
                Some(Piece::Finished { choice, finished, .. }) => {
                    let reason = if self.shape.prompt_only { FinishReason::Length } else { finished.reason };
                    Part { choice, finish_reason: Some(reason.as_str()), ..Part::default() }
                }
            };
            let choice = &mut self.choices[part.choice];
            for logprobs in part.tokens.iter().filter_map(|token| token.logprobs.as_ref()) {
                choice.logprob = (choice.logprob.0 + f64::from(logprobs.logprob), choice.logprob.1 + 1);
            }
            choice.add_echo(&mut part);
            return Ok(Some(part));
        }
    }

    fn json(&mut self, part: &Part, index: usize) -> Value {
        let offset = &mut self.choices[part.choice].offset;
        let logprobs = if self.head.logprobs { logprobs::completion(&self.head.tokenizer, &part.tokens, offset) } else { Value::Null };
        json!({"index": index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason})
    }

    fn usage(&self) -> Usage {
        let usage = self.answers.usage();
        if self.shape.prompt_only { Usage { completion_tokens: 0, ..usage } } else { usage }
    }

    async fn whole(mut self) -> Result<Response> {
        let mut parts: Vec<Part> = (0..self.choices.len()).map(|choice| Part { choice, ..Part::default() }).collect();
        while let Some(part) = self.next().await? {
            let whole = &mut parts[part.choice];
            whole.text += &part.text;
            whole.tokens.extend(part.tokens);
            whole.finish_reason = part.finish_reason.or(whole.finish_reason);
        }
        let Shape { n, best_of, .. } = self.shape;
        if best_of > n {
            // Stable, so that of equal ones the first stay.
            parts.sort_by(|a, b| {
                let key = |part: &Part| (part.choice / best_of, -self.choices[part.choice].score());
                key(a).0.cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1))
            });
        }
        let shown = parts.chunks(best_of).flat_map(|of_prompt| &of_prompt[..n]);
        let choices = shown.enumerate().map(|(index, part)| self.json(part, index)).collect();
        let usage = self.usage();
        Ok(Json(self.head.whole(choices, usage)).into_response())
    }

    fn chunks(self) -> impl Stream<Item = Result<Event, Infallible>> {
        let events = stream::unfold(Some(self), move |completion| async move {
            let mut completion = completion?;
            match completion.next().await {
                Ok(Some(part)) => {
                    let choice = completion.json(&part, part.choice);
                    completion.head.used = completion.usage();
                    Some((vec![data(&completion.head.object(OBJECT, vec![choice]))], Some(completion)))
                }
                Ok(None) => Some((completion.head.closing(OBJECT, completion.usage()), None)),
                Err(error) => Some((failed(&error), None)),
            }
        });
        events.flat_map(stream::iter).map(Ok)
    }
}
