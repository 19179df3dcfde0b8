//! The one interface between models and devices.

use std::{fmt, sync::Arc};

use crate::{
    DType, PreparedWeight, Result, Storage, Tensor, Weight,
    ops::{
        ActMul, AddRmsNorm, Attention, Embed, GatherRows, KvWrite, Linear, LogitsMask, RmsNorm, Rope, RopeAttention, RopeKvWrite, Sample,
        Softcap,
    },
};

/// What a backend runs on, for people and for planning.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// E.g. `AMD EPYC 9454 (2 threads, AVX2)`.
    pub name: String,
    pub memory_total_bytes: u64,
    pub memory_available_bytes: u64,
    pub threads: usize,
}

/// Operations that a backend has recorded. The memory they name must outlive it.
pub trait Graph: Send + Sync + fmt::Debug {
    /// Issues all of them again, on what is in that memory then.
    ///
    /// # Errors
    /// When the device fails.
    fn replay(&self) -> Result<()>;
}

/// Host memory that a tensor is copied to while the host goes on. One copy at a time.
pub trait Readback: Send + fmt::Debug {
    /// Issues a copy of a contiguous tensor, behind all operations issued so far.
    ///
    /// # Errors
    /// When the tensor is larger than this was made for or not contiguous.
    fn start(&mut self, src: &Tensor) -> Result<()>;

    /// Waits for the copy, and not for what was issued behind it.
    ///
    /// # Errors
    /// When an operation before the copy failed on the device.
    fn wait(&mut self) -> Result<&[u8]>;
}

/// The [`Readback`] of a backend whose operations have run when they return: it copies at once.
#[derive(Debug)]
pub struct ImmediateReadback {
    download: fn(&Tensor, &mut [u8]) -> Result<()>,
    bytes: Vec<u8>,
    used: usize,
}

impl ImmediateReadback {
    /// For tensors of up to `bytes`, copied by `download`.
    pub fn new(bytes: usize, download: fn(&Tensor, &mut [u8]) -> Result<()>) -> Self {
        Self { download, bytes: vec![0; bytes], used: 0 }
    }
}

impl Readback for ImmediateReadback {
    fn start(&mut self, src: &Tensor) -> Result<()> {
        self.used = src.bytes();
        let dst = self.bytes.get_mut(..self.used).ok_or_else(|| crate::Error::Value {
            op: "readback",
            arg: "src",
            got: format!("{} bytes", src.bytes()),
            requirement: "it must fit what the readback was made for",
        })?;
        (self.download)(src, dst)
    }

    fn wait(&mut self) -> Result<&[u8]> {
        Ok(&self.bytes[..self.used])
    }
}

/// A device with every operation the models need.
///
/// Operations are issued in order and may finish later; [`Backend::download`] and [`Backend::synchronize`] wait. Every
/// operation checks its contract before it touches memory, so a wrong shape is an `Err` and never a fault. Operations
/// allocate nothing.
pub trait Backend: Send + Sync + fmt::Debug {
    /// `cpu`, `cuda`, …: what `--backend` takes.
    fn name(&self) -> &'static str;

    fn device(&self) -> DeviceInfo;

    /// The dtype that activations and the residual stream have here.
    fn activation_dtype(&self) -> DType;

    /// Tokens per KV-cache block that the attention kernels like best.
    fn kv_block_tokens(&self) -> usize;

    /// Whether block `b` of the KV caches of all layers should lie side by side in one piece of memory. Caches are then strided, and
    /// a short sequence touches little memory.
    fn kv_layers_together(&self) -> bool {
        false
    }

    /// The most tokens one step should compute at once; longer prompts are split.
    fn max_step_tokens(&self) -> usize;

    /// Whether `linear` rounds activations to 8 bits for packed weights, which loosens its tolerance.
    fn quantizes_activations(&self) -> bool;

    /// Bytes that operations keep for themselves once weights of up to `cols` columns are prepared: part of the memory plan.
    fn workspace_bytes(&self, _cols: usize) -> usize {
        0
    }

    /// Whether operations return before they have run. Then it pays to prepare a step while the device computes the one before,
    /// and to replay a [`Graph`] instead of issuing the same operations again.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Records the operations that `issue` issues, which do not run. It must not allocate, copy from or to the
    /// host, or wait. `None`: this backend has no graphs, and `issue` was not called.
    ///
    /// # Errors
    /// Those of `issue`, and when something in it cannot be recorded.
    fn capture(&self, issue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Arc<dyn Graph>>> {
        let _ = issue;
        Ok(None)
    }

    /// Host memory for copies of up to `bytes`.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    fn readback(&self, bytes: usize) -> Result<Box<dyn Readback>>;

    /// `bytes` of memory, zeroed.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Storage>>;

    /// Copies host bytes into a contiguous tensor, in the order of the operations. `src` is free again on return; few bytes do
    /// not wait for the device.
    ///
    /// # Errors
    /// When the sizes differ or the tensor is not contiguous.
    fn upload(&self, dst: &Tensor, src: &[u8]) -> Result<()>;

    /// Waits for all operations and copies a contiguous tensor to the host.
    ///
    /// # Errors
    /// When the sizes differ, the tensor is not contiguous, or an earlier operation failed on the device.
    fn download(&self, src: &Tensor, dst: &mut [u8]) -> Result<()>;

    /// Waits for all operations.
    ///
    /// # Errors
    /// When an earlier operation failed on the device.
    fn synchronize(&self) -> Result<()>;

    /// Brings a weight into the layout the kernels want, once, at load.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when no kernel can read this dtype or shape.
    fn prepare(&self, weight: Weight) -> Result<PreparedWeight>;

    // The operations. Each is documented, and defined by its scalar reference, in `ops/`; each fails when its contract is
    // broken.
    fn embed(&self, op: &Embed) -> Result<()>;
    fn rms_norm(&self, op: &RmsNorm) -> Result<()>;
    fn add_rms_norm(&self, op: &AddRmsNorm) -> Result<()>;
    fn linear(&self, op: &Linear) -> Result<()>;
    fn act_mul(&self, op: &ActMul) -> Result<()>;
    fn rope(&self, op: &Rope) -> Result<()>;
    fn kv_write(&self, op: &KvWrite) -> Result<()>;
    /// One pass where there is a kernel for it; else its parts.
    fn rope_kv_write(&self, op: &RopeKvWrite) -> Result<()> {
        op.unfused(self)
    }
    fn attention(&self, op: &Attention) -> Result<()>;
    /// One pass where there is a kernel for it; else its parts.
    fn rope_attention(&self, op: &RopeAttention) -> Result<()> {
        op.unfused(self)
    }
    fn gather_rows(&self, op: &GatherRows) -> Result<()>;
    fn softcap(&self, op: &Softcap) -> Result<()>;
    fn logits_mask(&self, op: &LogitsMask) -> Result<()>;
    fn sample(&self, op: &Sample) -> Result<()>;
}

impl dyn Backend + '_ {
    /// A zeroed contiguous tensor in memory of its own.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        zeros(self, dtype, shape)
    }

    /// A contiguous tensor holding `values`.
    ///
    /// # Errors
    /// When the count does not match the shape, or memory is short.
    pub fn tensor_f32(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        let t = self.zeros(DType::F32, shape)?;
        self.upload(&t, bytemuck::cast_slice(values))?;
        Ok(t)
    }

    /// A contiguous tensor holding `values`.
    ///
    /// # Errors
    /// When the count does not match the shape, or memory is short.
    pub fn tensor_i32(&self, shape: &[usize], values: &[i32]) -> Result<Tensor> {
        let t = self.zeros(DType::I32, shape)?;
        self.upload(&t, bytemuck::cast_slice(values))?;
        Ok(t)
    }

    /// The elements of a contiguous F32, F16 or BF16 tensor.
    ///
    /// # Errors
    /// As [`Backend::download`].
    pub fn read_f32(&self, t: &Tensor) -> Result<Vec<f32>> {
        let mut bytes = vec![0; t.bytes()];
        self.download(t, &mut bytes)?;
        let mut values = vec![0.0; t.elements()];
        crate::quant::dequantize(t.dtype(), &bytes, &mut values)
            .map_err(|e| crate::Error::Device { backend: "host", reason: e.to_string() })?;
        Ok(values)
    }

    /// The elements of a contiguous I32 tensor.
    ///
    /// # Errors
    /// As [`Backend::download`].
    pub fn read_i32(&self, t: &Tensor) -> Result<Vec<i32>> {
        let mut values = vec![0; t.elements()];
        self.download(t, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

fn zeros(backend: &(impl Backend + ?Sized), dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let Some(bytes) = elements.and_then(|n| dtype.bytes(n)) else {
        return Err(crate::Error::Value {
            op: "alloc",
            arg: "shape",
            got: format!("{shape:?} {dtype}"),
            requirement: "its size must fit the address space in whole blocks",
        });
    };
    Tensor::new(backend.alloc(bytes)?, dtype, shape)
}
