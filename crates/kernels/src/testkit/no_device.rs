//! A device that takes no time, for measuring what the host does.

use std::sync::Arc;

use crate::{
    Backend, DType, DeviceInfo, PreparedWeight, Readback, ReferenceBackend, Result, Storage, Tensor, Weight,
    ops::{ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, Sample, Softcap},
};

/// Copies what it is told to and computes nothing: every token that it draws is 0. Its steps overlap with the host's work.
#[derive(Debug)]
pub struct NoDevice;

macro_rules! nothing {
    ($($op:ident: $args:ident),* $(,)?) => {
        $(fn $op(&self, _: &$args) -> Result<()> { Ok(()) })*
    };
}

impl Backend for NoDevice {
    fn name(&self) -> &'static str {
        "nothing"
    }
    fn device(&self) -> DeviceInfo {
        ReferenceBackend.device()
    }
    fn activation_dtype(&self) -> DType {
        DType::F32
    }
    fn kv_block_tokens(&self) -> usize {
        64
    }
    fn max_step_tokens(&self) -> usize {
        8192
    }
    fn quantizes_activations(&self) -> bool {
        false
    }
    fn is_asynchronous(&self) -> bool {
        true
    }
    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        ReferenceBackend.readback(bytes)
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        ReferenceBackend.alloc(bytes)
    }
    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        ReferenceBackend.upload(dst, src)
    }
    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        ReferenceBackend.download(src, dst)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        ReferenceBackend.prepare(weight)
    }
    nothing!(
        embed: Embed,
        rms_norm: RmsNorm,
        add_rms_norm: AddRmsNorm,
        linear: Linear,
        act_mul: ActMul,
        rope: Rope,
        kv_write: KvWrite,
        attention: Attention,
        gather_rows: GatherRows,
        softcap: Softcap,
        logits_mask: LogitsMask,
        sample: Sample,
    );
}
