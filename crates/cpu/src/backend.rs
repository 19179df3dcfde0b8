//! The [`Backend`] of the processor itself.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use ferrum_kernels::{
    Backend, DType, DeviceInfo, Error, ImmediateReadback, PreparedWeight, Readback, Result, Storage, Tensor, Weight,
    ops::{ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, Sample, Softcap},
};

use crate::{
    embed,
    features::{self, Simd},
    linear, ops,
    pool::Pool,
    storage::{self, CpuStorage},
};

/// How `linear` computes with packed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Activations are rounded to 8 bits with one scale per 32 elements, products are summed in integers. Processors
    /// without integer kernels compute as [`Precision::F32`].
    #[default]
    Int8,
    /// Weights are dequantised to F32 on the fly.
    F32,
}

/// How to make a [`CpuBackend`]. The default is what runs fastest.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// `None`: one per core.
    pub threads: Option<usize>,
    pub precision: Precision,
    /// `None`: the best this processor has.
    pub simd: Option<Simd>,
}

/// Computes on the processor, in F32 activations.
pub struct CpuBackend {
    pool: Pool,
    simd: Simd,
    int8: bool,
    scratch: Mutex<linear::Scratch>,
}

/// Held while memory of the backend is touched. One lock for all backends of the process: they share the cores, and
/// tensors of one may be given to another.
static RUNNING: Mutex<()> = Mutex::new(());

impl CpuBackend {
    /// # Errors
    /// When the processor lacks the SIMD level asked for, or the system refuses a thread.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let simd = options.simd.map_or(Ok(Simd::detect()), Simd::checked)?;
        let threads = options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get()));
        if !(1..=1024).contains(&threads) {
            return Err(Error::Value { op: "cpu", arg: "threads", got: threads.to_string(), requirement: "it must be 1 to 1024" });
        }
        let refused = |e| Error::Device { backend: crate::NAME, reason: format!("cannot start {threads} threads: {e}; ask for fewer") };
        let pool = Pool::new(threads).map_err(refused)?;
        let int8 = options.precision == Precision::Int8 && linear::has_int8(simd);
        Ok(Self { pool, simd, int8, scratch: Mutex::new(linear::Scratch::new(threads)) })
    }

    /// The SIMD level its kernels use.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    fn lock(&self) -> (MutexGuard<'static, ()>, &Pool) {
        (RUNNING.lock().unwrap_or_else(PoisonError::into_inner), &self.pool)
    }

    fn how(&self) -> linear::How {
        linear::How { simd: self.simd, int8: self.int8 }
    }

    fn scratch(&self) -> MutexGuard<'_, linear::Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuBackend({} threads, {}, int8 {})", self.pool.workers(), self.simd, self.int8)
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        crate::NAME
    }

    fn device(&self) -> DeviceInfo {
        let (memory_total_bytes, memory_available_bytes) = features::memory_bytes();
        let threads = self.pool.workers();
        let name = format!("{} ({threads} threads, {})", features::cpu_name(), self.simd);
        DeviceInfo { name, memory_total_bytes, memory_available_bytes, threads }
    }

    fn activation_dtype(&self) -> DType {
        DType::F32
    }

    fn kv_block_tokens(&self) -> usize {
        32
    }

    /// Memory comes in pages of 2 MiB, which the system clears when they are first touched.
    fn kv_layers_together(&self) -> bool {
        true
    }

    fn max_step_tokens(&self) -> usize {
        linear::MAX_TOKENS
    }

    fn quantizes_activations(&self) -> bool {
        self.int8
    }

    fn workspace_bytes(&self, cols: usize) -> usize {
        linear::Scratch::bytes(self.how(), self.pool.workers(), cols)
    }

    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(CpuStorage::zeroed(bytes)?))
    }

    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>> {
        Ok(Box::new(ImmediateReadback::new(bytes, |src, dst| {
            let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            storage::download(src, dst)
        })))
    }

    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()> {
        let _running = self.lock();
        storage::upload(dst, src)
    }

    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()> {
        let _running = self.lock();
        storage::download(src, dst)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, weight: Weight) -> Result<PreparedWeight> {
        linear::prepare(self.how(), &self.pool, &mut self.scratch(), weight)
    }

    fn embed(&self, op: &Embed) -> Result<()> {
        let (_running, pool) = self.lock();
        embed::run(pool, op)
    }

    fn rms_norm(&self, op: &RmsNorm) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::rms_norm::run(pool, self.simd, op)
    }

    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::add_rms_norm::run(pool, self.simd, op)
    }

    fn linear(&self, op: &Linear) -> Result<()> {
        if !op.is_plain() {
            op.check()?;
            return op.unfused(self);
        }
        let (_running, pool) = self.lock();
        linear::run(self.how(), pool, &mut self.scratch(), op)
    }

    fn act_mul(&self, op: &ActMul) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::act_mul::run(pool, self.simd, op)
    }

    fn rope(&self, op: &Rope) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::rope::run(pool, self.simd, op)
    }

    fn kv_write(&self, op: &KvWrite) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::kv_write::run(pool, self.simd, op)
    }

    fn attention(&self, op: &Attention) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::attention::run(pool, self.simd, op)
    }

    fn gather_rows(&self, op: &GatherRows) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::gather_rows::run(pool, self.simd, op)
    }

    fn softcap(&self, op: &Softcap) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::softcap::run(pool, self.simd, op)
    }

    fn logits_mask(&self, op: &LogitsMask) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::logits_mask::run(pool, self.simd, op)
    }

    fn sample(&self, op: &Sample) -> Result<()> {
        let (_running, pool) = self.lock();
        ops::sample::run(pool, self.simd, op)
    }
}
