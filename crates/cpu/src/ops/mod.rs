//! The operations other than `linear` and `embed`, one file each, as `run(pool, op)`.

pub(crate) mod act_mul;
pub(crate) mod add_rms_norm;
pub(crate) mod attention;
pub(crate) mod gather_rows;
pub(crate) mod kv_write;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod softcap;
