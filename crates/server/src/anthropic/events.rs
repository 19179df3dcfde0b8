//! The answer of `/v1/messages`: a stream of events about blocks, or the message that these events would build.

use std::convert::Infallible;

use axum::response::sse::Event;
use ferrum_engine::FinishReason;
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use serde_json::{Value, json};

use crate::{
    error::Result,
    generate::Usage,
    output::Delta,
    turn::{End, Turn},
};

/// A message in the making.
pub struct Message {
    id: String,
    model: String,
    /// Blocks so far; the last one is open
    blocks: Vec<Block>,
    end: Option<End>,
}

enum Block {
    Text(String),
    Thinking(String),
    ToolUse { id: String, name: String, input: String },
}

impl Message {
    pub fn new(id: String, model: String) -> Self {
        Self { id, model, blocks: Vec::new(), end: None }
    }

    /// Adds a delta; returns the events that say so.
    fn take(&mut self, delta: Delta) -> Vec<Value> {
        let mut events = Vec::new();
        let begins = match (&delta, self.blocks.last()) {
            (Delta::CallStart { .. }, _) => true,
            (Delta::Content(_), last) => !matches!(last, Some(Block::Text(_))),
            (Delta::Reasoning(_), last) => !matches!(last, Some(Block::Thinking(_))),
            (Delta::CallArguments { .. }, _) => false,
        };
        if begins {
            events.extend(self.stopped());
            let block = match &delta {
                Delta::Content(_) => Block::Text(String::new()),
                Delta::Reasoning(_) => Block::Thinking(String::new()),
                Delta::CallStart { name, .. } | Delta::CallArguments { text: name, .. } => {
                    let id = format!("toolu_{}_{}", self.id.trim_start_matches("msg_"), self.blocks.len());
                    Block::ToolUse { id, name: name.clone(), input: String::new() }
                }
            };
            events.push(json!({"type": "content_block_start", "index": self.blocks.len(), "content_block": block.json()}));
            self.blocks.push(block);
        }
        let index = self.blocks.len().saturating_sub(1);
        let change = match (delta, self.blocks.last_mut()) {
            (Delta::Content(more), Some(Block::Text(text))) => {
                *text += &more;
                json!({"type": "text_delta", "text": more})
            }
            (Delta::Reasoning(more), Some(Block::Thinking(text))) => {
                *text += &more;
                json!({"type": "thinking_delta", "thinking": more})
            }
            (Delta::CallArguments { text: more, .. }, Some(Block::ToolUse { input, .. })) => {
                *input += &more;
                json!({"type": "input_json_delta", "partial_json": more})
            }
            _ => return events,
        };
        events.push(json!({"type": "content_block_delta", "index": index, "delta": change}));
        events
    }

    /// The event that closes the open block.
    fn stopped(&self) -> Option<Value> {
        let index = self.blocks.len().checked_sub(1)?;
        Some(json!({"type": "content_block_stop", "index": index}))
    }

    fn json(&self, usage: Usage) -> Value {
        let content: Vec<Value> = self.blocks.iter().map(Block::json).collect();
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": self.stop_reason(), "stop_sequence": self.stop_sequence(), "usage": shown(usage),
        })
    }

    fn stop_reason(&self) -> Option<&'static str> {
        let end = self.end.as_ref()?;
        Some(match end.finished.reason {
            FinishReason::Length => "max_tokens",
            FinishReason::Context => "model_context_window_exceeded",
            _ if end.calls_tools => "tool_use",
            _ if end.stop_string.is_some() => "stop_sequence",
            _ => "end_turn",
        })
    }

    fn stop_sequence(&self) -> Option<&str> {
        self.end.as_ref()?.stop_string.as_deref()
    }

    fn opening(&self, usage: Usage) -> Vec<Value> {
        vec![json!({"type": "message_start", "message": self.json(usage)}), json!({"type": "ping"})]
    }

    fn closing(&self, usage: Usage) -> Vec<Value> {
        let delta = json!({"stop_reason": self.stop_reason(), "stop_sequence": self.stop_sequence()});
        let ends = [json!({"type": "message_delta", "delta": delta, "usage": shown(usage)}), json!({"type": "message_stop"})];
        self.stopped().into_iter().chain(ends).collect()
    }
}

impl Block {
    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!({"type": "text", "text": text}),
            Self::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Self::ToolUse { id, name, input } => {
                // Arguments that a cut answer left incomplete are shown as their text.
                let input =
                    if input.is_empty() { json!({}) } else { serde_json::from_str(input).unwrap_or_else(|_| input.as_str().into()) };
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }
}

fn shown(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens), "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens, "cache_creation_input_tokens": 0,
    })
}

/// # Errors
/// When the engine failed.
pub async fn whole(mut message: Message, mut turn: Turn) -> Result<Value> {
    while let Some(part) = turn.next().await? {
        for delta in part.deltas {
            message.take(delta);
        }
        message.end = part.end.or(message.end);
    }
    Ok(message.json(turn.usage()))
}

pub fn stream(message: Message, turn: Turn) -> impl Stream<Item = Result<Event, Infallible>> {
    let opening = stream::iter(message.opening(turn.usage()));
    let rest = stream::unfold(Some((message, turn)), |state| async move {
        let (mut message, mut turn) = state?;
        match turn.next().await {
            Ok(Some(part)) => {
                let events: Vec<Value> = part.deltas.into_iter().flat_map(|delta| message.take(delta)).collect();
                message.end = part.end.or(message.end);
                Some((events, Some((message, turn))))
            }
            Ok(None) => Some((message.closing(turn.usage()), None)),
            Err(error) => Some((vec![error.anthropic()], None)),
        }
    });
    opening.chain(rest.flat_map(stream::iter)).map(|data| {
        let name = data["type"].as_str().unwrap_or_default();
        Ok(Event::default().event(name).data(data.to_string()))
    })
}
