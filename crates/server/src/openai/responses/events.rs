//! The answer of `/v1/responses`: a stream of numbered events about items, or the response that they end with.

use std::convert::Infallible;

use axum::response::sse::Event;
use ferrum_engine::FinishReason;
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::Result,
    fields::Fields,
    generate::Usage,
    output::Delta,
    turn::{Block, Blocks, End, Turn},
};

/// What every form of the response repeats: its id, and what was asked.
pub struct Head {
    id: String,
    fixed: Value,
}

impl Head {
    pub fn new(app: &App, model: &str, fields: &Fields) -> Self {
        let id = app.id("resp_");
        let asked = |field: &str, otherwise: Value| fields.get(field).cloned().unwrap_or(otherwise);
        let fixed = json!({
            "id": id, "object": "response", "created_at": crate::now_s(), "model": model, "error": null, "previous_response_id": null,
            "instructions": asked("instructions", Value::Null), "max_output_tokens": asked("max_output_tokens", Value::Null),
            "metadata": asked("metadata", json!({})), "parallel_tool_calls": asked("parallel_tool_calls", true.into()),
            "reasoning": asked("reasoning", json!({"effort": null, "summary": null})), "store": false,
            "temperature": asked("temperature", Value::Null), "text": asked("text", json!({"format": {"type": "text"}})),
            "tool_choice": asked("tool_choice", "auto".into()), "tools": asked("tools", json!([])),
            "top_p": asked("top_p", Value::Null), "truncation": "disabled", "user": asked("user", Value::Null),
        });
        Self { id, fixed }
    }
}

/// A response in the making.
pub struct Answer {
    head: Head,
    /// Each is an item
    items: Blocks,
    end: Option<End>,
    /// Number of the next event
    sequence: u64,
}

impl Answer {
    pub fn new(head: Head) -> Self {
        Self { head, items: Blocks::default(), end: None, sequence: 0 }
    }

    fn item_id(&self, index: usize) -> String {
        let prefix = match self.items.all().get(index) {
            Some(Block::Reasoning(_)) => "rs",
            Some(Block::Call { .. }) => "fc",
            _ => "msg",
        };
        format!("{prefix}_{}_{index}", self.head.id.trim_start_matches("resp_"))
    }

    fn item(&self, index: usize, status: &str) -> Value {
        let id = self.item_id(index);
        match &self.items.all()[index] {
            Block::Text(text) if status == "in_progress" && text.is_empty() => {
                json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": []})
            }
            Block::Text(text) => {
                json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": [text_part(text)]})
            }
            Block::Reasoning(text) => {
                json!({"type": "reasoning", "id": id, "summary": [], "content": [{"type": "reasoning_text", "text": text}]})
            }
            Block::Call { name, arguments } => {
                let call_id = id.replacen("fc", "call", 1);
                json!({"type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments, "status": status})
            }
        }
    }

    /// Adds a delta; returns the events that say so.
    fn take(&mut self, delta: Delta) -> Vec<Value> {
        let mut events = Vec::new();
        if self.items.is_beginning(&delta) {
            events.extend(self.closed("completed"));
            self.items.begin(&delta);
            let index = self.items.all().len() - 1;
            events.push(json!({"type": "response.output_item.added", "output_index": index, "item": self.item(index, "in_progress")}));
            if matches!(delta, Delta::Content(_)) {
                let id = self.item_id(index);
                events.push(json!({"type": "response.content_part.added", "item_id": id, "output_index": index, "content_index": 0, "part": text_part("")}));
            }
        }
        if let Some(more) = self.items.add(delta)
            && let Some(index) = self.items.last()
        {
            let id = self.item_id(index);
            events.push(match &self.items.all()[index] {
                Block::Text(_) => json!({"type": "response.output_text.delta", "item_id": id, "output_index": index, "content_index": 0, "delta": more, "logprobs": []}),
                Block::Reasoning(_) => json!({"type": "response.reasoning_text.delta", "item_id": id, "output_index": index, "content_index": 0, "delta": more}),
                Block::Call { .. } => json!({"type": "response.function_call_arguments.delta", "item_id": id, "output_index": index, "delta": more}),
            });
        }
        events
    }

    /// The events that close the open item.
    fn closed(&self, status: &str) -> Vec<Value> {
        let Some(index) = self.items.last() else { return Vec::new() };
        let id = self.item_id(index);
        let mut events = match &self.items.all()[index] {
            Block::Text(text) => vec![
                json!({"type": "response.output_text.done", "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": []}),
                json!({"type": "response.content_part.done", "item_id": id, "output_index": index, "content_index": 0, "part": text_part(text)}),
            ],
            Block::Reasoning(text) => {
                vec![
                    json!({"type": "response.reasoning_text.done", "item_id": id, "output_index": index, "content_index": 0, "text": text}),
                ]
            }
            Block::Call { name, arguments } => {
                vec![
                    json!({"type": "response.function_call_arguments.done", "item_id": id, "output_index": index, "name": name, "arguments": arguments}),
                ]
            }
        };
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": self.item(index, status)}));
        events
    }

    /// `completed`, or `incomplete` where the answer was cut.
    fn status(&self) -> &'static str {
        let cut = |end: &End| matches!(end.finished.reason, FinishReason::Length | FinishReason::Context);
        if self.end.as_ref().is_some_and(cut) { "incomplete" } else { "completed" }
    }

    fn json(&self, status: &str, usage: Option<Usage>) -> Value {
        let mut body = self.head.fixed.clone();
        let last = self.items.last();
        let status_of = |index: usize| if Some(index) == last { status } else { "completed" };
        body["output"] = (0..self.items.all().len()).map(|index| self.item(index, status_of(index))).collect();
        body["status"] = status.into();
        body["incomplete_details"] = if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { Value::Null };
        body["usage"] = usage.map(shown).into();
        body
    }

    fn closing(&self, usage: Usage) -> Vec<Value> {
        let status = self.status();
        let mut events = self.closed(status);
        events.push(json!({"type": format!("response.{status}"), "response": self.json(status, Some(usage))}));
        events
    }

    /// The events with their numbers, as they are sent.
    fn numbered(&mut self, events: Vec<Value>) -> Vec<Event> {
        let event = |mut data: Value| {
            data["sequence_number"] = self.sequence.into();
            self.sequence += 1;
            Event::default().event(data["type"].as_str().unwrap_or_default()).data(data.to_string())
        };
        events.into_iter().map(event).collect()
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn shown(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens, "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens, "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// # Errors
/// When the engine failed.
pub async fn whole(mut answer: Answer, mut turn: Turn) -> Result<Value> {
    while let Some(part) = turn.next().await? {
        for delta in part.deltas {
            answer.take(delta);
        }
        answer.end = part.end.or(answer.end);
    }
    Ok(answer.json(answer.status(), Some(turn.usage())))
}

pub fn stream(mut answer: Answer, turn: Turn) -> impl Stream<Item = Result<Event, Infallible>> {
    let begun = answer.json("in_progress", None);
    let opening = ["response.created", "response.in_progress"].map(|kind| json!({"type": kind, "response": begun}));
    let opening = stream::iter(answer.numbered(opening.into()));
    let rest = stream::unfold(Some((answer, turn)), |state| async move {
        let (mut answer, mut turn) = state?;
        match turn.next().await {
            Ok(Some(part)) => {
                let events = part.deltas.into_iter().flat_map(|delta| answer.take(delta)).collect();
                answer.end = part.end.or(answer.end);
                Some((answer.numbered(events), Some((answer, turn))))
            }
            Ok(None) => {
                let events = answer.closing(turn.usage());
                Some((answer.numbered(events), None))
            }
            Err(error) => {
                let mut response = answer.json("failed", None);
                response["error"] = json!({"code": "server_error", "message": error.message});
                Some((answer.numbered(vec![json!({"type": "response.failed", "response": response})]), None))
            }
        }
    });
    opening.chain(rest.flat_map(stream::iter)).map(Ok)
}
