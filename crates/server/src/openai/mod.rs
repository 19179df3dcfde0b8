//! OpenAI's routes.

pub mod chat;
pub mod completions;
mod logprobs;
mod messages;
pub mod models;

use serde_json::{Value, json};

use crate::generate::Usage;

pub use messages::ChatPrompt;

/// `usage` of a response.
pub fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}
