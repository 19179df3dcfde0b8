//! The blocks that model families are made of.

mod attention;
mod linear;
mod mlp;
mod rms_norm;

pub use attention::{Attention, AttentionOptions, Rotary};
pub use linear::{Head, Linear};
pub use mlp::Mlp;
pub use rms_norm::RmsNorm;
