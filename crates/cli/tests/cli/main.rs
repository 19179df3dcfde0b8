//! Through the binary, as users call it: tiny models of the repository, and SmolLM2 where `.models/` has it.

#[cfg(target_os = "linux")]
mod chat;
mod common;
mod config;
mod errors;
mod fake;
mod hub;
mod inspect;
mod load;
mod measure;
mod real;
mod run;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod terminal;
