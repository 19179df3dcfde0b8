//! OpenAI's routes.

pub mod chat;
pub mod completions;
pub mod embeddings;
mod input;
mod logprobs;
pub mod models;
pub mod responses;

use std::sync::Arc;

use axum::response::sse::Event;
use ferrum_models::text::Tokenizer;
use serde_json::{Value, json};

use crate::{
    app::{App, Served},
    error::ApiError,
    generate::Usage,
    sampling::Streaming,
};

/// What every part of a response repeats.
struct Head {
    /// `object` of a whole response
    kind: &'static str,
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Whether log-probabilities were asked for
    logprobs: bool,
    streaming: Streaming,
    /// So far, for streams that say it
    used: Usage,
}

impl Head {
    fn new(app: &App, model: &Served, (kind, id_prefix): (&'static str, &str), logprobs: bool) -> Self {
        let tokenizer = Arc::clone(&model.tokenizer);
        let (streaming, used) = (Streaming::default(), Usage::default());
        Self { kind, id: app.id(id_prefix), created: crate::now_s(), model: model.name.clone(), tokenizer, logprobs, streaming, used }
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        let mut body = json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices});
        if self.streaming.continuous_usage {
            body["usage"] = usage(self.used);
        } else if self.streaming.include_usage {
            body["usage"] = Value::Null;
        }
        body
    }

    /// A whole response.
    fn whole(&self, choices: Vec<Value>, used: Usage) -> Value {
        let mut body = self.object(self.kind, choices);
        body["usage"] = usage(used);
        body
    }

    /// The events that end a stream of objects of `kind`.
    fn closing(&self, kind: &str, used: Usage) -> Vec<Event> {
        let with_usage = self.streaming.include_usage.then(|| {
            let mut body = self.object(kind, vec![]);
            body["usage"] = usage(used);
            data(&body)
        });
        with_usage.into_iter().chain([done()]).collect()
    }
}

/// The events that end a stream that failed.
fn failed(error: &ApiError) -> Vec<Event> {
    vec![data(&error.openai()), done()]
}

/// `usage` of a response.
fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}

/// One event with a JSON value.
fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

/// The event behind the last of a stream.
fn done() -> Event {
    Event::default().data("[DONE]")
}
