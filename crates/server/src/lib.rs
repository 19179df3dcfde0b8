//! HTTP over the engine: the interfaces that existing clients, routers and dashboards speak.
//!
//! ```text
//! connection task ── Request ──→ engine thread          (service.rs: commands over, updates back)
//!                 ←── Update ──
//! Answers (generate.rs): text, stop strings, usage, the same for streamed and whole responses
//! Turn (turn.rs): one turn of a conversation, taken apart into text, reasoning and tool calls
//! openai/, operations.rs: the shapes of the routes
//! ```
#![forbid(unsafe_code)]

mod anthropic;
mod app;
mod call_grammar;
mod connection;
mod delivery;
mod error;
mod explain_tools;
mod fields;
mod generate;
mod grammars;
mod held;
mod limits;
mod listen;
mod metrics;
mod openai;
mod openapi;
mod operations;
mod output;
mod page;
mod prompt;
mod routes;
mod sampling;
mod service;
mod structured;
mod tls;
mod tools;
mod trace;
mod turn;

use std::time::{SystemTime, UNIX_EPOCH};

pub use app::{App, Served, Unhealthy};
pub use limits::{KeyLimits, Keys};
pub use output::ToolFormat;
pub use routes::{HttpOptions, router, serve};
pub use service::{KvWatch, Refused, Service, Siblings, Snapshot, Ticket, Update};
pub use tls::{Tls, TlsError};

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
