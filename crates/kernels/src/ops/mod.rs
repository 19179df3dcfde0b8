//! The operations: one file each, with named arguments, the shape contract, a scalar reference in f64 that *is* the
//! definition, and the test cases that every backend runs.

mod act_mul;
mod add_rms_norm;
mod attention;
mod embed;
mod gather_rows;
mod kv_write;
mod linear;
mod logits_mask;
mod rms_norm;
mod rope;
mod rope_attention;
mod rope_kv_write;
mod sample;
mod softcap;

pub use act_mul::{ActMul, Activation};
pub use add_rms_norm::AddRmsNorm;
pub use attention::Attention;
pub use embed::Embed;
pub use gather_rows::GatherRows;
pub use kv_write::KvWrite;
pub use linear::{Epilogue, Linear, Norm};
pub use logits_mask::{LogitBias, LogitsMask, LogitsMaskRow};
pub use rms_norm::RmsNorm;
pub use rope::{Rope, RopeLayout};
pub use rope_attention::RopeAttention;
pub use rope_kv_write::{QkNorm, RopeKvWrite, Rotation};
pub use sample::{Sample, SampleParams, gumbel, philox, token_noise};
pub use softcap::Softcap;

use crate::testkit::Case;

/// The cases of every operation.
pub fn cases() -> Vec<Case> {
    [
        act_mul::cases(),
        add_rms_norm::cases(),
        attention::cases(),
        embed::cases(),
        gather_rows::cases(),
        kv_write::cases(),
        linear::cases(),
        logits_mask::cases(),
        rms_norm::cases(),
        rope::cases(),
        rope_attention::cases(),
        rope_kv_write::cases(),
        sample::cases(),
        softcap::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
