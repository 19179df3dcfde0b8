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
    turn::{Block, Blocks, End, Turn},
};

/// A message in the making.
pub struct Message {
    id: String,
    model: String,
    blocks: Blocks,
    end: Option<End>,
}

impl Message {
    pub fn new(id: String, model: String) -> Self {
        Self { id, model, blocks: Blocks::default(), end: None }
    }

    fn block(&self, index: usize) -> Value {
        match &self.blocks.all()[index] {
            Block::Text(text) => json!({"type": "text", "text": text}),
            Block::Reasoning(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Block::Call { name, arguments } => {
                let id = format!("toolu_{}_{index}", self.id.trim_start_matches("msg_"));
                // Arguments that a cut answer left incomplete are shown as their text.
                let parsed = || serde_json::from_str(arguments).unwrap_or_else(|_| arguments.as_str().into());
                let input = if arguments.is_empty() { json!({}) } else { parsed() };
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }

    /// Adds a delta; returns the events that say so.
    fn take(&mut self, delta: Delta) -> Vec<Value> {
        let mut events = Vec::new();
        if self.blocks.is_beginning(&delta) {
            events.extend(self.stopped());
            self.blocks.begin(&delta);
            let index = self.blocks.all().len() - 1;
            events.push(json!({"type": "content_block_start", "index": index, "content_block": self.block(index)}));
        }
        if let Some(more) = self.blocks.add(delta)
            && let Some(index) = self.blocks.last()
        {
            let delta = match &self.blocks.all()[index] {
                Block::Text(_) => json!({"type": "text_delta", "text": more}),
                Block::Reasoning(_) => json!({"type": "thinking_delta", "thinking": more}),
                Block::Call { .. } => json!({"type": "input_json_delta", "partial_json": more}),
            };
            events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        }
        events
    }

    /// The event that closes the open block.
    fn stopped(&self) -> Option<Value> {
        Some(json!({"type": "content_block_stop", "index": self.blocks.last()?}))
    }

    fn json(&self, usage: Usage) -> Value {
        let content: Vec<Value> = (0..self.blocks.all().len()).map(|index| self.block(index)).collect();
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
