//! `POST /v1/chat/completions`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use bytes::Bytes;
use ferrum_engine::{FinishReason, MAX_LOGPROBS};
use ferrum_models::text::Tokenizer;
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use serde_json::{Value, json};

use super::{ChatPrompt, logprobs, usage};
use crate::{
    app::App,
    error::{ApiError, Result},
    fields::Fields,
    generate::{Answers, Piece, Token},
    output::{Delta, OutputParser, ToolFormat, open_reasoning},
    sampling::{Generation, Streaming},
    structured::{self, Wanted},
    tools::ToolChoice,
};

/// Fields that change the answer and are not honoured.
const REFUSED: &[&str] = &["audio", "web_search_options", "echo", "suffix"];

pub async fn create(State(app): State<Arc<App>>, body: Bytes) -> Result<Response> {
    let mut fields = Fields::parse(&body)?;
    let model = app.model_named(fields.string("model")?)?;
    fields.refuse(REFUSED)?;
    fields.only("modalities", &json!(["text"]))?;
    fields.only("store", &json!(false))?;
    let logprobs = read_logprobs(&fields)?;
    let streaming = Streaming::read(&mut fields)?;
    let mut generation = Generation::read(&mut fields, &model.sampling)?;
    let mut prompt = ChatPrompt::read(&mut fields)?;
    let choice = ToolChoice::read(fields.take("tool_choice").as_ref())?;
    let tools = prompt.tool_format(model, &choice)?;
    let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
    if let Some(call) = prompt.forced_call(model, &choice, tools, parallel)?
        && let Some(wanted) = generation.grammar.replace(call)
    {
        return Err(structured::excluded(&wanted.param, "tool_choice"));
    }
    generation.skip_special &= !tools.is_some_and(ToolFormat::needs_special_tokens);
    let split_reasoning = fields.bool("separate_reasoning")?.unwrap_or(true);
    let rendered = prompt.render(&app).await?;
    if let Some(mark) = open_reasoning(&rendered.end) {
        generation.grammar = generation.grammar.map(|wanted| Wanted { grammar: wanted.grammar.after(mark), ..wanted });
    }
    let parser = || {
        let parser = OutputParser::new(tools, split_reasoning, &rendered.end);
        if parallel { parser } else { parser.one_call() }
    };
    let parsers = (0..generation.n).map(|_| parser()).collect();
    let answers = Answers::start(&app, model, vec![rendered.tokens], &generation, logprobs).await?;
    let tokenizer = Arc::clone(&model.tokenizer);
    let head =
        Head { id: app.id("chatcmpl-"), created: crate::now_s(), model: model.name.clone(), tokenizer, logprobs: logprobs.is_some() };
    let chat = Chat { head, answers, parsers };
    if streaming.stream {
        return Ok(Sse::new(chunks(chat, streaming.include_usage)).keep_alive(KeepAlive::default()).into_response());
    }
    whole(chat).await
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

/// What every part of a response repeats.
struct Head {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
}

impl Head {
    fn logprobs(&self, tokens: &[Token]) -> Value {
        if self.logprobs { logprobs::chat(&self.tokenizer, tokens) } else { Value::Null }
    }

    /// Ids are made from the response's, so that a stream and its parts agree.
    fn call_id(&self, choice: usize, index: usize) -> String {
        format!("call-{}-{choice}-{index}", self.id.trim_start_matches("chatcmpl-"))
    }

    /// The events of one part: one per delta; log-probabilities and finish reason come with the last.
    fn chunks(&self, part: Part) -> Vec<Event> {
        let Part { choice, deltas, tokens, finish_reason } = part;
        let mut deltas: Vec<Value> = deltas.into_iter().map(|delta| self.delta(choice, delta)).collect();
        if finish_reason.is_some() || deltas.is_empty() && self.logprobs && !tokens.is_empty() {
            deltas.push(json!({}));
        }
        let last = deltas.len().saturating_sub(1);
        let chunk = |(i, delta)| {
            let logprobs = if i == last && !tokens.is_empty() { self.logprobs(&tokens) } else { Value::Null };
            let finish_reason = if i == last { finish_reason.into() } else { Value::Null };
            data(&self.chunk(choice, delta, logprobs, finish_reason))
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
        self.object("chat.completion.chunk", vec![choice])
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// A response in the making.
struct Chat {
    head: Head,
    answers: Answers,
    /// One per choice
    parsers: Vec<OutputParser>,
}

/// What one piece brought to one choice.
struct Part {
    choice: usize,
    deltas: Vec<Delta>,
    tokens: Vec<Token>,
    finish_reason: Option<&'static str>,
}

impl Chat {
    /// The next piece of the answers, taken apart; `None` after the last.
    async fn next(&mut self) -> Result<Option<Part>> {
        Ok(match self.answers.next().await? {
            None => None,
            Some(Piece::Text { choice, text, tokens }) => {
                Some(Part { choice, deltas: self.parsers[choice].push(&text), tokens, finish_reason: None })
            }
            Some(Piece::Finished { choice, finished }) => {
                let parser = &mut self.parsers[choice];
                let deltas = parser.finish();
                let called = parser.calls() > 0 && finished.reason == FinishReason::Stop;
                let reason = if called { "tool_calls" } else { finished.reason.as_str() };
                Some(Part { choice, deltas, tokens: Vec::new(), finish_reason: Some(reason) })
            }
        })
    }
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
        self.finish_reason = part.finish_reason.or(self.finish_reason);
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
        let logprobs = head.logprobs(&self.tokens);
        json!({"index": choice, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason})
    }
}

async fn whole(mut chat: Chat) -> Result<Response> {
    let mut messages = vec![Message::default(); chat.parsers.len()];
    while let Some(part) = chat.next().await? {
        messages[part.choice].take(part);
    }
    let choices = messages.iter().enumerate().map(|(choice, message)| message.json(&chat.head, choice));
    let mut body = chat.head.object("chat.completion", choices.collect());
    body["usage"] = usage(chat.answers.usage());
    Ok(Json(body).into_response())
}

fn chunks(chat: Chat, include_usage: bool) -> impl Stream<Item = Result<Event, Infallible>> {
    let opening = (0..chat.parsers.len()).map(|choice| {
        let delta = json!({"role": "assistant", "content": ""});
        data(&chat.head.chunk(choice, delta, Value::Null, Value::Null))
    });
    let opening = stream::iter(opening.collect::<Vec<_>>());
    let rest = stream::unfold(Some(chat), move |chat| async move {
        let mut chat = chat?;
        match chat.next().await {
            Ok(Some(part)) => Some((chat.head.chunks(part), Some(chat))),
            Ok(None) => {
                let mut last = Vec::new();
                if include_usage {
                    let mut body = chat.head.object("chat.completion.chunk", vec![]);
                    body["usage"] = usage(chat.answers.usage());
                    last.push(data(&body));
                }
                last.push(done());
                Some((last, None))
            }
            Err(error) => Some((vec![data(&error.openai()), done()], None)),
        }
    });
    opening.chain(rest.flat_map(stream::iter)).map(Ok)
}

/// One event with a JSON value.
pub(super) fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

/// The event that ends a stream.
pub(super) fn done() -> Event {
    Event::default().data("[DONE]")
}
