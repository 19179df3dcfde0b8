//! A device and a model that take no time: what is left is the host's work.

use std::sync::Arc;

use ferrum_engine::{Engine, EngineOptions};
use ferrum_kernels::{
    Backend, DType, DeviceInfo, PreparedWeight, Readback, ReferenceBackend, Result, Storage, Tensor, Weight,
    ops::{ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, Sample, Softcap},
};
use ferrum_models::{Model, ModelInfo, Step};

#[derive(Debug)]
struct NoDevice;

macro_rules! nothing {
    ($($op:ident: $args:ident),*) => {
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
        embed: Embed, rms_norm: RmsNorm, add_rms_norm: AddRmsNorm, linear: Linear, act_mul: ActMul, rope: Rope, kv_write: KvWrite,
        attention: Attention, gather_rows: GatherRows, softcap: Softcap,
        logits_mask: LogitsMask, sample: Sample
    );
}

struct NoModel(ModelInfo);

impl Model for NoModel {
    fn info(&self) -> &ModelInfo {
        &self.0
    }
    fn forward(&self, _: &mut Step) -> ferrum_models::Result<()> {
        Ok(())
    }
    fn states(&self, step: &Step) -> ferrum_models::Result<Tensor> {
        Ok(step.rows(&step.scratch.hidden))
    }
    fn logits(&self, _: &dyn Backend, _: &Tensor, _: &Tensor) -> ferrum_models::Result<()> {
        Ok(())
    }
}

/// An engine for 256 requests.
pub fn engine() -> Engine {
    let info = ModelInfo {
        family: "none",
        vocab: 256,
        hidden: 4,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        inner: 4,
        max_context: 4096,
        parameters: 0,
    };
    let options = EngineOptions { max_context: Some(1024), max_seqs: 256, ..EngineOptions::default() };
    Engine::new(Arc::new(NoDevice), Arc::new(NoModel(info)), options).unwrap()
}
