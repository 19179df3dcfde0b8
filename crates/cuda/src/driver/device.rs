//! One GPU: its primary context and what planning and launchers want to know about it.

use std::{cell::Cell, fmt, ptr, sync::Arc};

use ferrum_kernels::Result;

use super::{check, error, sys};

/// The driver must be at least of the CUDA version that the kernels are compiled with: an older one has neither all the
/// functions nor a loader for the code.
const DRIVER_VERSION: i32 = 13_000;

/// What a GPU is. Read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// E.g. `NVIDIA H100 80GB HBM3`
    pub name: String,
    /// E.g. (9, 0)
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors
    pub sms: u32,
    pub l2_bytes: usize,
    /// Most shared memory of one block
    pub block_shared_bytes: usize,
    pub memory_bytes: usize,
    /// The driver's CUDA version, e.g. (13, 0)
    pub driver: (u32, u32),
}

/// A GPU with its primary context, which is retained while this lives.
pub struct Device {
    raw: sys::CUdevice,
    context: sys::CUcontext,
    attributes: Attributes,
}

// SAFETY: the driver's contexts may be used from any thread; `bind` makes ours the calling thread's own first.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

thread_local! {
    static CURRENT: Cell<sys::CUcontext> = const { Cell::new(ptr::null_mut()) };
}

impl Device {
    /// GPU number `ordinal`, counted as the driver does.
    ///
    /// # Errors
    /// When there is no driver, it is too old, or it knows no such GPU.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let version = init()?;
        let mut count = 0;
        // SAFETY: the driver is initialised; it writes one integer.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        if ordinal >= count as usize {
            return Err(error(format!("there is no GPU {ordinal}: the driver knows {count}")));
        }
        let mut raw = 0;
        // SAFETY: the ordinal is below the count; the driver writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut raw, ordinal as i32) })?;
        let attributes = attributes(raw, version)?;
        let mut context = ptr::null_mut();
        // SAFETY: a valid device; released once, in `drop`.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, raw) })?;
        let device = Self { raw, context, attributes };
        device.bind()?;
        Ok(Arc::new(device))
    }

    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Whether code of the architecture `sm_90a` runs here.
    pub fn is_hopper(&self) -> bool {
        self.attributes.compute_capability == (9, 0)
    }

    /// Makes this GPU's context the calling thread's. Everything in this module that calls the driver does it first.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn bind(&self) -> Result<()> {
        if CURRENT.get() == self.context {
            return Ok(());
        }
        // SAFETY: the context is retained while `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        CURRENT.set(self.context);
        Ok(())
    }

    /// Free and total bytes of its memory.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn memory_bytes(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: our context is current; the driver writes two integers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        CURRENT.set(ptr::null_mut());
        // SAFETY: retained once in `open`. At the end of the process the driver may be gone already and refuse: nothing is
        // left to be done then.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.raw) };
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

/// Loads and initialises the driver; its CUDA version.
fn init() -> Result<i32> {
    // SAFETY: looks for the driver's library and loads it, which runs its initialisers and nothing of ours.
    if !unsafe { sys::is_culib_present() } {
        return Err(error("the NVIDIA driver is not installed (libcuda was not found)"));
    }
    let mut version = 0;
    // SAFETY: the library is there, and this function is in every version of it; it writes one integer.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    if version < DRIVER_VERSION {
        return Err(error(format!(
            "the NVIDIA driver is too old: it is of CUDA {}.{}, and {}.{} is needed; install driver 580 or later",
            version / 1000,
            version % 1000 / 10,
            DRIVER_VERSION / 1000,
            DRIVER_VERSION % 1000 / 10
        )));
    }
    // SAFETY: as above; may be called any number of times.
    check("cuInit", unsafe { sys::cuInit(0) })?;
    Ok(version)
}

fn attributes(raw: sys::CUdevice, version: i32) -> Result<Attributes> {
    use sys::CUdevice_attribute as A;
    let get = |attribute| {
        let mut value = 0;
        // SAFETY: a valid device; the driver writes one integer.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, raw) })?;
        Ok(value as u32)
    };
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most 256 bytes, a terminating NUL among them.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, raw) })?;
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    let mut memory_bytes = 0;
    // SAFETY: a valid device; the driver writes one integer.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, raw) })?;
    Ok(Attributes {
        name: String::from_utf8_lossy(name).into_owned(),
        compute_capability: (get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?, get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?),
        sms: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: get(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        block_shared_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        memory_bytes,
        driver: (version as u32 / 1000, version as u32 % 1000 / 10),
    })
}
