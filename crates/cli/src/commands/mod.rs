//! One file per command.

pub mod bench;
pub mod bench_serve;
pub mod completions;
pub mod doctor;
pub mod list;
pub mod man;
pub mod perplexity;
pub mod plan;
pub mod pull;
mod repl;
pub mod run;
pub mod serve;
pub mod show;
