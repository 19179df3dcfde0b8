//! Through the binary, as users call it: tiny models of the repository, and SmolLM2 where `.models/` has it.

mod common;
mod errors;
mod inspect;
mod measure;
mod real;
mod run;
