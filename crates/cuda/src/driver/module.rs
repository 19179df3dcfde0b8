//! Kernels: found by name in a compiled module, launched with one struct of parameters.

use std::{ffi::CString, fmt, mem, ptr, sync::Arc};

use ferrum_kernels::Result;

use super::{Device, Stream, check, error, sys};

/// Shared memory that a block may have without asking for it.
const DEFAULT_SHARED_BYTES: usize = 48 << 10;

/// A loaded fatbin.
pub struct Module {
    device: Arc<Device>,
    raw: sys::CUmodule,
}

// SAFETY: a loaded module is never changed.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a fatbin as nvcc writes it: the code for this GPU, or else its PTX, which takes longer.
    ///
    /// # Errors
    /// When it has nothing for this GPU.
    pub fn load(device: &Arc<Device>, fatbin: &[u8]) -> Result<Arc<Self>> {
        device.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the fatbin is complete: nvcc wrote it, and its header gives its length.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut raw, fatbin.as_ptr().cast()) })?;
        Ok(Arc::new(Self { device: device.clone(), raw }))
    }

    /// The kernel `name`, with leave to use all the shared memory that a block can have.
    ///
    /// # Errors
    /// When the module has no such kernel, or it takes no parameter.
    pub fn kernel(self: &Arc<Self>, name: &str) -> Result<Kernel> {
        self.device.bind()?;
        let symbol = CString::new(name).map_err(|_| error(format!("`{name}` is no kernel name")))?;
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded; the driver writes one handle.
        check(name, unsafe { sys::cuModuleGetFunction(&mut raw, self.raw, symbol.as_ptr()) })?;
        let (mut offset, mut param_bytes) = (0, 0);
        // SAFETY: a valid kernel; the driver writes two integers.
        check(name, unsafe { sys::cuFuncGetParamInfo(raw, 0, &mut offset, &mut param_bytes) })?;
        let mut kernel = Kernel { module: self.clone(), raw, name: name.into(), param_bytes, architecture: 0, registers: 0 };
        kernel.architecture = kernel.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? as u32;
        // They are dealt out to warps in units of 256: eight for each thread.
        kernel.registers = (kernel.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)? as u32).next_multiple_of(8);
        let most = self.device.attributes().block_shared_bytes as i32
            - kernel.attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        if most > DEFAULT_SHARED_BYTES as i32 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a valid kernel, and no more than the device has.
            check(name, unsafe { sys::cuFuncSetAttribute(raw, attribute, most) })?;
        }
        // A multiprocessor divides its memory between L1 and shared anew only when it is empty. As all kernels ask for the same, the
        // next one's blocks start beside those of the one before: 1.5 µs of a layer of 54 with decode attention between products.
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: a valid kernel; the value is a percentage. It is a wish: where it is not granted, the kernel runs all the same.
        let _ = unsafe { sys::cuFuncSetAttribute(raw, attribute, 100) };
        Ok(kernel)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once; every kernel holds its module.
        let _ = self.device.bind().map(|()| unsafe { sys::cuModuleUnload(self.raw) });
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({:p})", self.raw)
    }
}

/// How many threads run a kernel, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y, z
    pub blocks: [u32; 3],
    /// Threads of a block, all along x
    pub threads: u32,
    /// Dynamic shared memory of a block
    pub shared_bytes: u32,
    /// Neighbouring blocks along x that share memory; 1: none
    pub cluster: u32,
}

impl Grid {
    /// `blocks` blocks of `threads` threads along x, without shared memory.
    pub const fn new(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared_bytes: 0, cluster: 1 }
    }
}

/// A function of a loaded module. Cloning shares it.
#[derive(Clone)]
pub struct Kernel {
    module: Arc<Module>,
    raw: sys::CUfunction,
    name: Arc<str>,
    param_bytes: usize,
    architecture: u32,
    registers: u32,
}

// SAFETY: a handle into a module that is never changed.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Queues one run. The kernel may start while the one before it on the stream still runs (programmatic dependent
    /// launch): it waits by itself before it touches memory that others write.
    ///
    /// An empty grid runs nothing.
    ///
    /// # Safety
    /// `P` is the `#[repr(C)]` mirror of the kernel's parameter struct, and every address in it is live device memory of
    /// the size that the kernel's documentation gives, until the run has ended.
    ///
    /// # Errors
    /// When the struct's size is not the kernel's, or the grid is impossible on this device.
    pub unsafe fn launch<P: Copy>(&self, stream: &Stream, grid: Grid, params: &P) -> Result<()> {
        if self.param_bytes != mem::size_of::<P>() {
            let got = mem::size_of::<P>();
            return Err(error(format!("kernel {} takes a struct of {} bytes, not of {got}", self.name, self.param_bytes)));
        }
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.module.device.bind()?;
        let mut attributes: [sys::CUlaunchAttribute; 2] = [launch_attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        ); 2];
        let mut count = 1;
        if grid.cluster > 1 {
            let shape = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: grid.cluster, y: 1, z: 1 };
            let value = sys::CUlaunchAttributeValue { clusterDim: shape };
            attributes[1] = launch_attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value);
            count = 2;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: grid.blocks[2],
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: stream.raw(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        let mut arguments = [ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: the driver reads configuration and parameters before it returns; the caller answers for the addresses.
        let result = unsafe { sys::cuLaunchKernelEx(&config, self.raw, arguments.as_mut_ptr(), ptr::null_mut()) };
        if result == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { check(&format!("{} with {grid:?}", self.name), result) }
    }

    /// The architecture it was compiled for, e.g. 90: less than the device's when the driver translated PTX. What the source
    /// leaves out below an architecture is missing then, whatever the device.
    pub fn architecture(&self) -> u32 {
        self.architecture
    }

    /// Registers that each of its threads occupies.
    pub fn registers(&self) -> u32 {
        self.registers
    }

    /// How many of its blocks one multiprocessor runs at once.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn blocks_per_sm(&self, threads: u32, shared_bytes: u32) -> Result<u32> {
        self.module.device.bind()?;
        let mut blocks = 0;
        // SAFETY: a valid kernel; the driver writes one integer.
        check(&self.name, unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.raw, threads as i32, shared_bytes as usize)
        })?;
        Ok(blocks as u32)
    }

    fn attribute(&self, attribute: sys::CUfunction_attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: a valid kernel; the driver writes one integer.
        check(&self.name, unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.raw) })?;
        Ok(value)
    }
}

fn launch_attribute(id: sys::CUlaunchAttributeID, value: sys::CUlaunchAttributeValue) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({}, {} bytes of parameters)", self.name, self.param_bytes)
    }
}
