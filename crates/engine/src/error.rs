//! What can go wrong in the engine.

use crate::memory::MemoryPlan;

/// The result of fallible engine calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the engine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] ferrum_models::Error),
    #[error(transparent)]
    Kernel(#[from] ferrum_kernels::Error),
    #[error("engine option `{field}` is {got}: {requirement}")]
    Option { field: &'static str, got: String, requirement: String },
    #[error("{}", .0.refusal())]
    Memory(Box<MemoryPlan>),
    #[error("scoring {tokens} tokens needs {needed} free blocks, but only {available} are free; wait for running requests to end")]
    Busy { tokens: usize, needed: usize, available: usize },
    #[error("the engine is working for other requests; use `submit` and `step` to add one more")]
    InUse,
    #[error(transparent)]
    Request(#[from] SubmitError),
}

/// Why a request was not accepted. Nobody else is affected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    #[error("`{field}` is {got}: {requirement}")]
    Invalid { field: &'static str, got: String, requirement: String },
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context holds {max_context} and one must be left for the answer; shorten the \
         prompt or raise the context length"
    )]
    PromptTooLong { prompt_tokens: usize, max_context: usize },
    #[error(
        "the prompt's {prompt_tokens} tokens and {max_tokens} more do not fit into the context of {max_context}; shorten the prompt, lower \
         max_tokens or raise the context length"
    )]
    ContextExceeded { prompt_tokens: usize, max_tokens: usize, max_context: usize },
    #[error("{limit} requests are waiting already; try again later")]
    QueueFull { limit: usize },
}

impl SubmitError {
    pub(crate) fn invalid(field: &'static str, got: impl ToString, requirement: impl Into<String>) -> Self {
        Self::Invalid { field, got: got.to_string(), requirement: requirement.into() }
    }
}
