//! Requests in, tokens out: scheduler, paged KV cache with prefix reuse, runner and sampler.
//!
//! ```text
//! plan = scheduler.plan()              pure: which tokens of which sequences, in which blocks
//! runner.issue(&plan, …)               one upload, one forward pass, sampling: all on the device
//! runner.wait()                        the tokens; logits reach the host only for log-probabilities
//! scheduler.commit(plan, tokens)
//! ```
//!
//! Where the device works on its own, the next step is issued before the tokens of the last have come.
#![forbid(unsafe_code)]

mod active;
mod block_pool;
mod counts;
mod draft;
mod engine;
mod error;
mod grammar;
mod graphs;
mod logprobs;
mod masks;
mod memory;
mod options;
mod plan;
mod read_prompt;
mod request;
mod runner;
mod scheduler;
mod score;
mod sequence;
mod speculate;
mod stop;
mod text;
mod users;

pub use block_pool::{BlockId, BlockPool, KvEvent, Prefix};
pub use engine::{Engine, Event, Reading, Stats, StepStats};
pub use error::{Error, Result, SubmitError};
pub use grammar::{Constraint, Grammar, GrammarCompiler, GrammarError, MAX_GRAMMAR_BYTES, MAX_GRAMMAR_DEPTH};
pub use logprobs::TokenLogprobs;
pub use memory::MemoryPlan;
pub use options::EngineOptions;
pub use plan::{Plan, PlannedSequence, RequestId};
pub use request::{MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKENS, MAX_TOKENS, ReadPrompt, Request, SamplingParams};
pub use scheduler::{Counts, Limits, Outcome, Scheduler};
pub use sequence::{ContextFull, FinishReason, Finished, NewSequence};
pub use speculate::StepTimes;
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopStrings};
pub use text::{Answer, TextOptions, TextStream};
pub use users::UserId;
