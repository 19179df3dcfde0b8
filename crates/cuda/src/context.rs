//! What every launcher works with: the device, the stream of the steps, kernels by name, scratch memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use ferrum_kernels::{DType, Error, Result};

use crate::driver::{Device, DeviceBuffer, DevicePtr, Grid, Kernel, Module, Stream, error, fatbin};
use crate::linear::{Lt, Next};

/// Scratch memory that one operation may use while it runs.
const WORKSPACE_BYTES: usize = 128 << 20;
/// Up to here kernels copy faster than the copy engine.
const FEW_BYTES: usize = 128 << 10;
/// Of a multiprocessor.
const REGISTERS: u32 = 64 << 10;
/// Counters that are zero between operations.
const COUNTER_BYTES: usize = 1 << 20;

#[repr(C)]
#[derive(Clone, Copy)]
struct CopyWordsParams {
    src: DevicePtr,
    dst: DevicePtr,
    words: i32,
    from_host: i32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Context {
    device: Arc<Device>,
    stream: Stream,
    kernels: RwLock<HashMap<&'static str, Kernel>>,
    modules: RwLock<HashMap<&'static str, Arc<Module>>>,
    workspace: DeviceBuffer,
    counters: DeviceBuffer,
    lt: OnceLock<Option<Lt>>,
    last_weight: Mutex<Option<Next>>,
    last_block: Mutex<Block>,
}

/// What a block of a kernel occupies of a multiprocessor.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    registers: u32,
    shared_bytes: usize,
}

impl Context {
    /// # Errors
    /// When there is no usable GPU, or no memory left on it.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let stream = Stream::new(&device)?;
        let workspace = DeviceBuffer::new(&device, WORKSPACE_BYTES)?;
        let counters = DeviceBuffer::zeroed(&stream, COUNTER_BYTES)?;
        Ok(Self {
            device,
            stream,
            kernels: RwLock::default(),
            modules: RwLock::default(),
            workspace,
            counters,
            lt: OnceLock::new(),
            last_weight: Mutex::default(),
            last_block: Mutex::default(),
        })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Steps run on this stream, in order.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Scratch memory for `bytes`, not initialised, free again when the operation's last kernel has ended. Two kernels of
    /// one operation may pass data in it. 256-byte aligned.
    ///
    /// # Errors
    /// When that is more than there is: launchers choose their splits so that it is not.
    pub fn workspace(&self, bytes: usize) -> Result<DevicePtr> {
        within(&self.workspace, bytes)
    }

    /// Bytes of [`Context::workspace`].
    pub fn workspace_len(&self) -> usize {
        self.workspace.len()
    }

    /// `count` I32 counters, each 0 before the operation. Whoever raises them sets them back to 0. 256-byte aligned.
    ///
    /// # Errors
    /// When that is more than there are.
    pub fn counters(&self, count: usize) -> Result<DevicePtr> {
        within(&self.counters, 4 * count)
    }

    /// Queues a copy to the device, from pinned memory at `from_host` if there are few bytes.
    ///
    /// # Safety
    /// `dst` has `src.len()` bytes in live device memory, and `src`, whose address for kernels is `from_host`, stays as it is
    /// until the copy has run.
    ///
    /// # Errors
    /// When the launch is impossible.
    pub unsafe fn copy_to_device(&self, dst: DevicePtr, src: &[u8], from_host: DevicePtr) -> Result<()> {
        if !is_few(src.len(), dst, from_host) {
            // SAFETY: the caller answers for both sides.
            return unsafe { self.stream.copy_to_device(dst, src) };
        }
        // SAFETY: as above.
        unsafe { self.copy_words(dst, from_host, src.len(), true) }
    }

    /// Queues a copy to pinned memory of the host, whose address for kernels is `to_host`.
    ///
    /// # Safety
    /// `src` has `dst.len()` bytes in live device memory, and nobody touches `dst` until the copy has run.
    ///
    /// # Errors
    /// When the launch is impossible.
    pub unsafe fn copy_to_host(&self, dst: &mut [u8], to_host: DevicePtr, src: DevicePtr) -> Result<()> {
        if !is_few(dst.len(), to_host, src) {
            // SAFETY: the caller answers for both sides.
            return unsafe { self.stream.copy_to_host(dst, src) };
        }
        // SAFETY: as above.
        unsafe { self.copy_words(to_host, src, dst.len(), false) }
    }

    /// Between two steps the copy engine's two copies cost 15 µs, of which they run for 2: each engine waits for the other.
    unsafe fn copy_words(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, from_host: bool) -> Result<()> {
        let words = bytes / 4;
        let params = CopyWordsParams { src, dst, words: words as i32, from_host: from_host.into() };
        // SAFETY: the caller answers for both sides.
        unsafe { self.launch("copy", "copy_words", Grid::new(words.div_ceil(256), 256), &params) }
    }

    /// cuBLASLt, opened by the first call; `None` when it is not installed or refuses to start.
    pub fn lt(&self) -> Option<&Lt> {
        self.lt.get_or_init(|| Lt::open(&self.stream).ok().flatten()).as_ref()
    }

    /// The weight that was used last; from now on that is `weight`.
    pub fn last_weight(&self, weight: &Next) -> Option<Next> {
        self.last_weight.lock().unwrap_or_else(PoisonError::into_inner).replace(weight.clone())
    }

    /// Whether a block of so many threads, registers each and bytes of shared memory runs beside one of the kernel launched last.
    pub fn runs_beside_last(&self, threads: u32, registers: u32, shared_bytes: usize) -> bool {
        let last = *self.last_block.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a block, 1 KiB is the system's; the first of the two has its own within what a block may have at most.
        let room = self.device.attributes().block_shared_bytes.saturating_sub(last.shared_bytes);
        shared_bytes + 1024 <= room && last.registers + threads * registers <= REGISTERS
    }

    /// Whether `kernels/STEM.cu` is in this program and runs on this device.
    pub fn has(&self, stem: &str) -> bool {
        fatbin(stem).is_some() && (!stem.starts_with("sm90_") || self.device.is_hopper())
    }

    /// Queues kernel `name` of `kernels/STEM.cu` with one parameter struct. See [`Kernel::launch`].
    ///
    /// # Safety
    /// As for [`Kernel::launch`].
    ///
    /// # Errors
    /// When there is no such kernel for this device, or the launch is impossible.
    pub unsafe fn launch<P: Copy>(&self, stem: &'static str, name: &'static str, grid: Grid, params: &P) -> Result<()> {
        {
            let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(kernel) = kernels.get(name) {
                self.note(kernel, grid);
                // SAFETY: the caller answers for the parameters.
                return unsafe { kernel.launch(&self.stream, grid, params) };
            }
        }
        let kernel = self.kernel(stem, name)?;
        self.note(&kernel, grid);
        // SAFETY: as above.
        unsafe { kernel.launch(&self.stream, grid, params) }
    }

    fn note(&self, kernel: &Kernel, grid: Grid) {
        let block = Block { registers: grid.threads * kernel.registers(), shared_bytes: grid.shared_bytes as usize };
        *self.last_block.lock().unwrap_or_else(PoisonError::into_inner) = block;
    }

    /// The kernel `name` of `kernels/STEM.cu`. The first call for a file loads it.
    ///
    /// # Errors
    /// When there is no such kernel for this device.
    pub fn kernel(&self, stem: &'static str, name: &'static str) -> Result<Kernel> {
        if let Some(kernel) = self.kernels.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(kernel.clone());
        }
        let kernel = self.module(stem)?.kernel(name)?;
        self.kernels.write().unwrap_or_else(PoisonError::into_inner).insert(name, kernel.clone());
        Ok(kernel)
    }

    fn module(&self, stem: &'static str) -> Result<Arc<Module>> {
        let mut modules = self.modules.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(stem) {
            return Ok(module.clone());
        }
        let fatbin = fatbin(stem).ok_or_else(|| error(format!("this program was built without the kernels of {stem}.cu")))?;
        let module = Module::load(&self.device, fatbin)?;
        modules.insert(stem, module.clone());
        Ok(module)
    }
}

fn is_few(bytes: usize, dst: DevicePtr, src: DevicePtr) -> bool {
    bytes <= FEW_BYTES && bytes > 0 && (bytes as DevicePtr | dst | src).is_multiple_of(4)
}

fn within(buffer: &DeviceBuffer, bytes: usize) -> Result<DevicePtr> {
    if bytes <= buffer.len() {
        return Ok(buffer.ptr());
    }
    Err(error(format!("an operation needs {bytes} bytes of scratch memory, and there are {}", buffer.len())))
}

/// An [`Error::Unsupported`] of this backend.
pub(crate) fn unsupported(op: &'static str, what: impl Into<String>) -> Error {
    Error::Unsupported { backend: crate::NAME, op, what: what.into() }
}

/// The float dtype that all of `dtypes` are.
///
/// # Errors
/// [`Error::Unsupported`] when they differ.
pub(crate) fn same_float<const N: usize>(op: &'static str, dtypes: [DType; N]) -> Result<DType> {
    match dtypes.first() {
        Some(&first) if first.is_float() && dtypes.iter().all(|&d| d == first) => Ok(first),
        _ => Err(unsupported(op, format!("the dtypes {dtypes:?} together"))),
    }
}

/// `STEM_f32`, `STEM_f16` or `STEM_bf16`.
macro_rules! by_float {
    ($dtype:expr, $stem:literal) => {
        match $dtype {
            ferrum_kernels::DType::F32 => concat!($stem, "_f32"),
            ferrum_kernels::DType::F16 => concat!($stem, "_f16"),
            _ => concat!($stem, "_bf16"),
        }
    };
}
pub(crate) use by_float;
