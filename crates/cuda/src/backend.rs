//! The [`Backend`] of an NVIDIA GPU.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ferrum_kernels::{
    Backend, DType, DeviceInfo, Graph, PreparedWeight, Readback, Result, Storage, Tensor, Weight, host,
    ops::{
        ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, RopeAttention, RopeKvWrite, Sample,
        Softcap,
    },
};

use crate::{
    attention,
    context::Context,
    driver::{self, Event, PinnedBuffer},
    linear, ops,
    storage::{self, CudaStorage},
    upload::Ring,
};

/// Computes on one GPU, in BF16 activations.
pub struct CudaBackend {
    cx: Arc<Context>,
    ring: Mutex<Ring>,
}

impl CudaBackend {
    /// The backend of GPU number `ordinal`.
    ///
    /// # Errors
    /// When there is no driver, it is too old, or it knows no such GPU.
    pub fn new(ordinal: usize) -> Result<Self> {
        let cx = Arc::new(Context::open(ordinal)?);
        let ring = Mutex::new(Ring::new(cx.device())?);
        Ok(Self { cx, ring })
    }

    /// What the GPU is.
    pub fn attributes(&self) -> &crate::driver::Attributes {
        self.cx.device().attributes()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CudaBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaBackend({})", self.attributes().name)
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn device(&self) -> DeviceInfo {
        let a = self.attributes();
        let (free, total) = self.cx.device().memory_bytes().unwrap_or((0, a.memory_bytes));
        let (major, minor) = a.compute_capability;
        let name = format!("{} (sm_{major}{minor}, {} SMs)", a.name, a.sms);
        DeviceInfo { name, memory_total_bytes: total as u64, memory_available_bytes: free as u64, threads: a.sms as usize }
    }

    fn activation_dtype(&self) -> DType {
        DType::BF16
    }

    fn kv_block_tokens(&self) -> usize {
        64
    }

    fn max_step_tokens(&self) -> usize {
        // With a token each for sequences that decode meanwhile: without them, the last prompt of a round thousand of tokens
        // would miss by as many, and cost a step of its own.
        8192 + 256
    }

    fn quantizes_activations(&self) -> bool {
        false
    }

    fn workspace_bytes(&self, _cols: usize) -> usize {
        linear::LT_BYTES
    }

    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(CudaStorage::zeroed(self.cx.stream(), bytes)?))
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn capture(&self, issue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Arc<dyn Graph>>> {
        Ok(Some(Arc::new(CudaGraph { graph: driver::Graph::record(self.cx.stream(), issue)?, cx: self.cx.clone() })))
    }

    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        let (memory, done) = (PinnedBuffer::new(self.cx.device(), bytes)?, Event::new(self.cx.device())?);
        Ok(Box::new(CudaReadback { cx: self.cx.clone(), memory, done, used: 0, under_way: false }))
    }

    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        host::check_copy(dst, src.len())?;
        // SAFETY: the tensor lies within its storage and is as large as `src`.
        unsafe { self.ring().upload(&self.cx, storage::ptr(dst)?, src) }
    }

    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        host::check_copy(src, dst.len())?;
        // SAFETY: the tensor lies within its storage and is as large as `dst`.
        unsafe { self.ring().download(self.cx.stream(), dst, storage::ptr(src)?) }
    }

    fn synchronize(&self) -> Result<()> {
        self.cx.stream().synchronize()
    }

    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        linear::prepare(&self.cx, &mut self.ring(), &weight)
    }

    fn embed(&self, op: &Embed) -> Result<()> {
        linear::embed(&self.cx, op)
    }

    fn rms_norm(&self, op: &RmsNorm) -> Result<()> {
        ops::rms_norm(&self.cx, op)
    }

    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()> {
        ops::add_rms_norm(&self.cx, op)
    }

    fn linear(&self, op: &Linear) -> Result<()> {
        linear::run(self, &self.cx, op)
    }

    fn act_mul(&self, op: &ActMul) -> Result<()> {
        ops::act_mul(&self.cx, op)
    }

    fn rope(&self, op: &Rope) -> Result<()> {
        ops::rope(&self.cx, op)
    }

    fn kv_write(&self, op: &KvWrite) -> Result<()> {
        ops::kv_write(&self.cx, op)
    }

    fn rope_kv_write(&self, op: &RopeKvWrite) -> Result<()> {
        op.check()?;
        if ops::fuses_rope_kv_write(op) { ops::rope_kv_write(&self.cx, op) } else { op.unfused(self) }
    }

    fn attention(&self, op: &Attention) -> Result<()> {
        attention::run(&self.cx, op)
    }

    fn rope_attention(&self, op: &RopeAttention) -> Result<()> {
        op.check()?;
        if attention::rope_attention(&self.cx, op)? { Ok(()) } else { op.unfused(self) }
    }

    fn gather_rows(&self, op: &GatherRows) -> Result<()> {
        ops::gather_rows(&self.cx, op)
    }

    fn softcap(&self, op: &Softcap) -> Result<()> {
        ops::softcap(&self.cx, op)
    }

    fn logits_mask(&self, op: &LogitsMask) -> Result<()> {
        ops::logits_mask(&self.cx, op)
    }

    fn sample(&self, op: &Sample) -> Result<()> {
        ops::sample(&self.cx, op)
    }
}

#[derive(Debug)]
struct CudaGraph {
    graph: driver::Graph,
    cx: Arc<Context>,
}

impl Graph for CudaGraph {
    fn replay(&self) -> Result<()> {
        self.graph.launch(self.cx.stream())
    }
}

/// Pinned memory, and when the copy to it has run.
#[derive(Debug)]
struct CudaReadback {
    cx: Arc<Context>,
    memory: PinnedBuffer,
    done: Event,
    used: usize,
    under_way: bool,
}

impl Readback for CudaReadback {
    fn start(&mut self, src: &Tensor) -> Result<()> {
        // Whoever starts anew without having waited must not have two copies in one place.
        if self.under_way {
            self.done.synchronize()?;
        }
        self.under_way = true;
        let to_host = self.memory.device_ptr();
        let dst = self.memory.as_mut_slice();
        self.used = src.bytes().min(dst.len());
        host::check_copy(src, self.used)?;
        // SAFETY: the tensor lies within its storage and is as large as the part; nobody reads that before `done`.
        unsafe { self.cx.copy_to_host(&mut dst[..self.used], to_host, storage::ptr(src)?)? };
        self.cx.stream().record(&self.done)
    }

    fn wait(&mut self) -> Result<&[u8]> {
        self.done.spin()?;
        self.under_way = false;
        Ok(&self.memory.as_slice()[..self.used])
    }
}
