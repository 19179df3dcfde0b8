//! `POST /v1/chat/completions`.

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
use ferrum_engine::MAX_LOGPROBS;
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use serde_json::{Value, json};

use super::{Head, data, failed, logprobs};
use crate::{
    app::App,
    error::{ApiError, Result},
    fields::Fields,
    generate::Token,
    limits::Client,
    openapi::takes,
    output::Delta,
    sampling::Streaming,
    turn::{Asked, End, Part, Turn},
};

const CHUNK: &str = "chat.completion.chunk";

pub async fn create(State(app): State<Arc<App>>, Extension(client): Extension<Client>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body, &takes::CHAT)?;
    let model = app.model_named(fields.string("model")?)?;
    fields.only("modalities", &json!(["text"]))?;
    let logprobs = read_logprobs(&fields)?;
    let streaming = Streaming::read(&mut fields)?;
    let turn = Turn::start(&app, model, &mut fields, Asked { client, logprobs }).await?;
    let head = Head { streaming, ..Head::new(&app, model, ("chat.completion", "chatcmpl-"), logprobs.is_some()) };
    if streaming.stream {
        return Ok(Sse::new(chunks(head, turn)).keep_alive(KeepAlive::default()).into_response());
    }
    whole(head, turn).await
}

/// `logprobs` and `top_logprobs`.
fn read_logprobs(fields: &Fields) -> Result<Option<usize>> {
    let top = fields.count("top_logprobs", 0, MAX_LOGPROBS as u64)?;
    match (fields.bool("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, Some(n)) if n > 0 => Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`")),
        (false, _) => Ok(None),
    }
}

impl Head {
    fn chat_logprobs(&self, tokens: &[Token]) -> Value {
        if self.logprobs { logprobs::chat(&self.tokenizer, tokens) } else { Value::Null }
    }

    /// Ids are made from the response's, so that a stream and its parts agree.
    fn call_id(&self, choice: usize, index: usize) -> String {
        format!("call-{}-{choice}-{index}", self.id.trim_start_matches("chatcmpl-"))
    }

    /// The events of one part: one per delta; log-probabilities and finish reason come with the last.
    fn chunks(&self, part: Part) -> Vec<Event> {
        let Part { choice, deltas, tokens, end } = part;
        let mut deltas: Vec<Value> = deltas.into_iter().map(|delta| self.delta(choice, delta)).collect();
        if end.is_some() || deltas.is_empty() && self.logprobs && !tokens.is_empty() {
            deltas.push(json!({}));
        }
        let last = deltas.len().saturating_sub(1);
        let chunk = |(i, delta)| {
            let logprobs = if i == last && !tokens.is_empty() { self.chat_logprobs(&tokens) } else { Value::Null };
            let reason = end.as_ref().filter(|_| i == last).map(finish_reason);
            data(&self.chunk(choice, delta, logprobs, reason.into()))
        };
        deltas.into_iter().enumerate().map(chunk).collect()
    }

    fn delta(&self, choice: usize, delta: Delta) -> Value {
        match delta {
            Delta::Content(text) => json!({"content": text}),
            Delta::Reasoning(text) => json!({"reasoning_content": text}),
            Delta::CallStart { index, name } => {
                let function = json!({"name": name, "arguments": ""});
                json!({"tool_calls": [{"index": index, "id": self.call_id(choice, index), "type": "function", "function": function}]})
            }
            Delta::CallArguments { index, text } => json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}),
        }
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish_reason: Value) -> Value {
        let choice = json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason});
        self.object(CHUNK, vec![choice])
    }
}

fn finish_reason(end: &End) -> &'static str {
    if end.calls_tools { "tool_calls" } else { end.finished.reason.as_str() }
}

/// A message put together from its deltas.
#[derive(Clone, Default)]
struct Message {
    content: String,
    reasoning: String,
    /// Name and arguments
    calls: Vec<(String, String)>,
    tokens: Vec<Token>,
    finish_reason: Option<&'static str>,
}

impl Message {
    fn take(&mut self, part: Part) {
        for delta in part.deltas {
            match delta {
                Delta::Content(text) => self.content += &text,
                Delta::Reasoning(text) => self.reasoning += &text,
                Delta::CallStart { name, .. } => self.calls.push((name, String::new())),
                Delta::CallArguments { text, .. } => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        *arguments += &text;
                    }
                }
            }
        }
        self.tokens.extend(part.tokens);
        self.finish_reason = part.end.as_ref().map(finish_reason).or(self.finish_reason);
    }

    fn json(&self, head: &Head, choice: usize) -> Value {
        let content = if self.content.is_empty() && !self.calls.is_empty() { Value::Null } else { self.content.as_str().into() };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.as_str().into();
        }
        if !self.calls.is_empty() {
            let call = |(index, (name, arguments)): (usize, &(String, String))| json!({"id": head.call_id(choice, index), "type": "function", "function": {"name": name, "arguments": arguments}});
            message["tool_calls"] = self.calls.iter().enumerate().map(call).collect();
        }
        let logprobs = head.chat_logprobs(&self.tokens);
        json!({"index": choice, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason})
    }
}

async fn whole(head: Head, mut turn: Turn) -> Result<Response> {
    let mut messages = vec![Message::default(); turn.choices()];
    while let Some(part) = turn.next().await? {
        messages[part.choice].take(part);
    }
    let choices = messages.iter().enumerate().map(|(choice, message)| message.json(&head, choice)).collect();
    Ok(Json(head.whole(choices, turn.usage())).into_response())
}

fn chunks(mut head: Head, turn: Turn) -> impl Stream<Item = Result<Event, Infallible>> {
    head.used = turn.usage();
    let opening = (0..turn.choices()).map(|choice| {
        let delta = json!({"role": "assistant", "content": ""});
        data(&head.chunk(choice, delta, Value::Null, Value::Null))
    });
    let opening = stream::iter(opening.collect::<Vec<_>>());
    let rest = stream::unfold(Some((head, turn)), move |state| async move {
        let (mut head, mut turn) = state?;
        match turn.next().await {
            Ok(Some(part)) => {
                head.used = turn.usage();
                Some((head.chunks(part), Some((head, turn))))
            }
            Ok(None) => Some((head.closing(CHUNK, turn.usage()), None)),
            Err(error) => Some((failed(&error), None)),
        }
    });
    opening.chain(rest.flat_map(stream::iter)).map(Ok)
}
