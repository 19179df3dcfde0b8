//! The scalar backend: every operation by its definition, in f64, on host memory. Slow; it is what the others are
//! compared with.

use std::sync::Arc;

use crate::{
    Backend, DType, DeviceInfo, ImmediateReadback, PreparedWeight, Readback, Result, Storage, Tensor, Weight,
    host::{self, HostStorage},
    ops::{ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, RopeKvWrite, Sample, Softcap},
};

pub(crate) const NAME: &str = "reference";

/// Runs the definition of every operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

/// A weight of the reference backend: `[rows, cols]` F32, row-major.
#[derive(Debug)]
pub(crate) struct ReferenceWeight(pub Vec<f32>);

impl ReferenceWeight {
    pub fn of(weight: &PreparedWeight) -> Result<&[f32]> {
        Ok(&weight.downcast::<Self>(NAME)?.0)
    }
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device(&self) -> DeviceInfo {
        DeviceInfo { name: "scalar f64".into(), memory_total_bytes: u64::MAX, memory_available_bytes: u64::MAX, threads: 1 }
    }

    fn activation_dtype(&self) -> DType {
        DType::F32
    }

    fn kv_block_tokens(&self) -> usize {
        16
    }

    fn max_step_tokens(&self) -> usize {
        512
    }

    fn quantizes_activations(&self) -> bool {
        false
    }

    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(HostStorage::zeros(bytes)))
    }

    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        Ok(Box::new(ImmediateReadback::new(bytes, host::read_bytes)))
    }

    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        host::write_bytes(dst, src)
    }

    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        host::read_bytes(src, dst)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        let values = weight.to_f32()?;
        Ok(PreparedWeight::new(&weight, values.len() * 4, Arc::new(ReferenceWeight(values))))
    }

    fn embed(&self, op: &Embed) -> Result<()> {
        op.reference()
    }

    fn rms_norm(&self, op: &RmsNorm) -> Result<()> {
        op.reference()
    }

    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()> {
        op.reference()
    }

    fn linear(&self, op: &Linear) -> Result<()> {
        op.reference()
    }

    fn act_mul(&self, op: &ActMul) -> Result<()> {
        op.reference()
    }

    fn rope(&self, op: &Rope) -> Result<()> {
        op.reference()
    }

    fn kv_write(&self, op: &KvWrite) -> Result<()> {
        op.reference()
    }

    fn rope_kv_write(&self, op: &RopeKvWrite) -> Result<()> {
        op.reference()
    }

    fn attention(&self, op: &Attention) -> Result<()> {
        op.reference()
    }

    fn gather_rows(&self, op: &GatherRows) -> Result<()> {
        op.reference()
    }

    fn softcap(&self, op: &Softcap) -> Result<()> {
        op.reference()
    }

    fn logits_mask(&self, op: &LogitsMask) -> Result<()> {
        op.reference()
    }

    fn sample(&self, op: &Sample) -> Result<()> {
        op.reference()
    }
}
