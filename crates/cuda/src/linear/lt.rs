//! cuBLASLt, opened at run time, for dense products of many tokens.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    fmt,
    mem::{self, MaybeUninit},
    ptr,
    sync::{Mutex, PoisonError},
};

use cudarc::cublaslt::sys as lt;
use ferrum_kernels::Result;

use crate::driver::{DeviceBuffer, DevicePtr, Stream, error};

/// Token counts are rounded up to this when an algorithm is chosen, so that a few choices serve all prompts.
const TOKENS_STEP: usize = 128;
/// What cuBLASLt may use while it runs; NVIDIA's advice for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T`, which cudarc declares in cuBLAS only.
const OP_T: i32 = 1;

/// The sizes and types that an algorithm is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
    /// Elements between rows of `x`
    pub x_stride: usize,
    /// Elements between rows of `out`
    pub out_stride: usize,
    /// F32 results instead of BF16
    pub out_f32: bool,
    /// `out += x · wᵀ`
    pub add: bool,
}

/// The library's handle, its workspace and the algorithms chosen so far.
pub(crate) struct Lt {
    handle: lt::cublasLtHandle_t,
    workspace: DeviceBuffer,
    plans: Mutex<HashMap<Product, Plan>>,
}

/// Layouts and algorithm of one [`Product`].
struct Plan {
    desc: lt::cublasLtMatmulDesc_t,
    weight: lt::cublasLtMatrixLayout_t,
    x: lt::cublasLtMatrixLayout_t,
    out: lt::cublasLtMatrixLayout_t,
    algo: lt::cublasLtMatmulAlgo_t,
}

// SAFETY: cuBLASLt's handle and descriptors may be used from any thread; the map is behind a lock.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

impl Lt {
    /// `None` when the library is not installed.
    ///
    /// # Errors
    /// When it is and refuses to start.
    pub fn open(stream: &Stream) -> Result<Option<Self>> {
        // SAFETY: looks for the library and loads it, which runs its initialisers and nothing of ours.
        if !unsafe { lt::is_culib_present() } {
            return Ok(None);
        }
        stream.device().bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: our context is current; the library writes one handle, destroyed once in `drop`.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        let workspace = DeviceBuffer::new(stream.device(), WORKSPACE_BYTES)?;
        Ok(Some(Self { handle, workspace, plans: Mutex::default() }))
    }

    /// Queues `out = x · weightᵀ` (or `+=`), BF16 operands, F32 sums. The first call with a shape asks for an algorithm.
    ///
    /// # Safety
    /// `weight` is `[rows, cols]`, `x` `[tokens, cols]`, `out` `[tokens, rows]`, with the strides of `product`, in live
    /// device memory until the product has run.
    ///
    /// # Errors
    /// When there is no algorithm for the shape, or the launch fails.
    pub unsafe fn run(&self, stream: &Stream, product: &Product, weight: DevicePtr, x: DevicePtr, out: DevicePtr) -> Result<()> {
        let key = Product { tokens: product.tokens.next_multiple_of(TOKENS_STEP), ..*product };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.plan(&key)?),
        };
        for layout in [plan.x, plan.out] {
            let (tokens, cols) = (product.tokens as u64, lt::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS);
            // SAFETY: a layout of ours; the library copies eight bytes.
            let result =
                unsafe { lt::cublasLtMatrixLayoutSetAttribute(layout, cols, (&raw const tokens).cast(), mem::size_of_val(&tokens)) };
            check("cublasLtMatrixLayoutSetAttribute", result)?;
        }
        let (alpha, beta) = (1.0f32, if product.add { 1.0f32 } else { 0.0 });
        let pointer = |p: DevicePtr| p as *const c_void;
        stream.device().bind()?;
        // SAFETY: the layouts are the plan's; the caller answers for the addresses. cudarc declares the two stream types
        // apart, and they are one.
        check("cublasLtMatmul", unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                pointer(weight),
                plan.weight,
                pointer(x),
                plan.x,
                (&raw const beta).cast(),
                pointer(out),
                plan.out,
                out as *mut c_void,
                plan.out,
                &plan.algo,
                self.workspace.ptr() as *mut c_void,
                self.workspace.len(),
                stream.raw().cast(),
            )
        })
    }

    /// cuBLASLt counts columns first: its A is the weight, transposed, its B is x, its D is `out`.
    fn plan(&self, p: &Product) -> Result<Plan> {
        use lt::{cublasLtMatmulDescAttributes_t as Attribute, cudaDataType as Type};
        let out_type = if p.out_f32 { Type::CUDA_R_32F } else { Type::CUDA_R_16BF };
        let mut plan = Plan {
            desc: ptr::null_mut(),
            weight: ptr::null_mut(),
            x: ptr::null_mut(),
            out: ptr::null_mut(),
            // SAFETY: plain numbers, overwritten below.
            algo: unsafe { MaybeUninit::zeroed().assume_init() },
        };
        let transpose = OP_T;
        let mut preference = ptr::null_mut();
        // SAFETY: each call writes a handle that `Plan::drop` destroys, or reads an attribute of the size given; the
        // heuristic writes at most the one result it has room for.
        unsafe {
            check(
                "cublasLtMatmulDescCreate",
                lt::cublasLtMatmulDescCreate(&mut plan.desc, lt::cublasComputeType_t::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F),
            )?;
            let size = mem::size_of_val(&transpose);
            let value = (&raw const transpose).cast();
            check(
                "cublasLtMatmulDescSetAttribute",
                lt::cublasLtMatmulDescSetAttribute(plan.desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, value, size),
            )?;
            let layout = |to: &mut _, ty, rows: usize, cols: usize, stride: usize| {
                check("cublasLtMatrixLayoutCreate", lt::cublasLtMatrixLayoutCreate(to, ty, rows as u64, cols as u64, stride as i64))
            };
            layout(&mut plan.weight, Type::CUDA_R_16BF, p.cols, p.rows, p.cols)?;
            layout(&mut plan.x, Type::CUDA_R_16BF, p.cols, p.tokens, p.x_stride)?;
            layout(&mut plan.out, out_type, p.rows, p.tokens, p.out_stride)?;
            check("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            let bytes = self.workspace.len();
            let limit = lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let mut found = MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::zeroed();
            let mut count = 0;
            let result = check(
                "cublasLtMatmulPreferenceSetAttribute",
                lt::cublasLtMatmulPreferenceSetAttribute(preference, limit, (&raw const bytes).cast(), mem::size_of_val(&bytes)),
            )
            .and_then(|()| {
                check(
                    "cublasLtMatmulAlgoGetHeuristic",
                    lt::cublasLtMatmulAlgoGetHeuristic(
                        self.handle,
                        plan.desc,
                        plan.weight,
                        plan.x,
                        plan.out,
                        plan.out,
                        preference,
                        1,
                        found.as_mut_ptr(),
                        &mut count,
                    ),
                )
            });
            let _ = lt::cublasLtMatmulPreferenceDestroy(preference);
            result?;
            if count == 0 {
                return Err(error(format!("cuBLASLt has no algorithm for {p:?}")));
            }
            plan.algo = found.assume_init().algo;
        }
        Ok(plan)
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: created once in `open`.
        let _ = unsafe { lt::cublasLtDestroy(self.handle) };
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in [self.weight, self.x, self.out] {
            if !layout.is_null() {
                // SAFETY: created once in `Lt::plan`.
                let _ = unsafe { lt::cublasLtMatrixLayoutDestroy(layout) };
            }
        }
        if !self.desc.is_null() {
            // SAFETY: as above.
            let _ = unsafe { lt::cublasLtMatmulDescDestroy(self.desc) };
        }
    }
}

impl fmt::Debug for Lt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lt").finish_non_exhaustive()
    }
}

fn check(call: &str, result: lt::cublasStatus_t) -> Result<()> {
    if result == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS { Ok(()) } else { Err(error(format!("{call}: {result:?}"))) }
}
