//! cuBLASLt, opened at run time, for dense products of many tokens.
//!
//! Its heuristic's first choice is up to 14 % slower than its best one on an H100 (4096×14336 at 256 tokens 60.0 µs instead of
//! 52.8, 28672×4096 at 4096 tokens 1440 instead of 1271): the first product of a size tries what it proposes.

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

use crate::driver::{DeviceBuffer, DevicePtr, Event, Stream, error};

/// Algorithms that are tried.
const CANDIDATES: usize = 8;
/// Runs of each.
const TRIALS: usize = 3;
/// What another algorithm must be faster by than the heuristic's first choice: less is noise, and would let results differ in
/// their last bits from one start of the program to the next.
const WORTHWHILE: f32 = 0.96;
/// Beyond the L2 cache of any GPU so far: overwriting as much leaves no weights there.
const CACHE_BYTES: usize = 128 << 20;
/// What cuBLASLt may use while it runs; NVIDIA's advice for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// What dense products allocate besides results: the workspace, and while algorithms are tried what that takes.
pub(crate) const LT_BYTES: usize = WORKSPACE_BYTES + CACHE_BYTES;

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
        let key = Product { tokens: bucket(product.tokens), ..*product };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let (mut plan, proposed) = self.plan(&key)?;
                plan.set_tokens(product.tokens)?;
                // What is being recorded does not run. A size that comes from a graph has run before.
                if !stream.is_capturing()? {
                    // SAFETY: the caller answers for both operands.
                    unsafe { self.choose(stream, &mut plan, &proposed, product, (weight, x))? };
                }
                new.insert(plan)
            }
        };
        plan.set_tokens(product.tokens)?;
        // SAFETY: the caller answers for all three.
        unsafe { self.queue(stream, plan, &plan.algo, product.add, (weight, x, out)) }
    }

    /// Takes the fastest of the proposed algorithms, if there is memory to try them in.
    ///
    /// # Safety
    /// As for [`Lt::run`], whose `out` this leaves alone.
    unsafe fn choose(
        &self,
        stream: &Stream,
        plan: &mut Plan,
        proposed: &[lt::cublasLtMatmulAlgo_t],
        product: &Product,
        (weight, x): (DevicePtr, DevicePtr),
    ) -> Result<()> {
        let out_bytes = product.tokens * product.out_stride.max(product.rows) * if product.out_f32 { 4 } else { 2 };
        let Ok(scratch) = DeviceBuffer::new(stream.device(), out_bytes.max(CACHE_BYTES)) else { return Ok(()) };
        let (start, end) = (Event::timed(stream.device())?, Event::timed(stream.device())?);
        let mut best = f32::INFINITY;
        for (number, algo) in proposed.iter().enumerate() {
            let mut ms = f32::INFINITY;
            for _ in 0..TRIALS {
                stream.clear(&scratch)?;
                stream.record(&start)?;
                // SAFETY: the scratch memory has room for the result; the caller answers for the operands.
                if unsafe { self.queue(stream, plan, algo, product.add, (weight, x, scratch.ptr())) }.is_err() {
                    break;
                }
                stream.record(&end)?;
                end.synchronize()?;
                ms = ms.min(end.ms_since(&start)?);
            }
            if number == 0 {
                best = ms * WORTHWHILE;
            } else if ms < best {
                (best, plan.algo) = (ms, *algo);
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Lt::run`].
    unsafe fn queue(
        &self,
        stream: &Stream,
        plan: &Plan,
        algo: &lt::cublasLtMatmulAlgo_t,
        add: bool,
        (weight, x, out): (DevicePtr, DevicePtr, DevicePtr),
    ) -> Result<()> {
        let (alpha, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
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
                algo,
                self.workspace.ptr() as *mut c_void,
                self.workspace.len(),
                stream.raw().cast(),
            )
        })
    }

    /// With what the heuristic proposes, its first choice set. cuBLASLt counts columns first: its A is the weight, transposed,
    /// its B is x, its D is `out`.
    fn plan(&self, p: &Product) -> Result<(Plan, Vec<lt::cublasLtMatmulAlgo_t>)> {
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
        let proposed;
        // SAFETY: each call writes a handle that `Plan::drop` destroys, or reads an attribute of the size given; the
        // heuristic writes at most as many results as it has room for.
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
            let mut found = MaybeUninit::<[lt::cublasLtMatmulHeuristicResult_t; CANDIDATES]>::zeroed();
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
                        CANDIDATES as i32,
                        found.as_mut_ptr().cast(),
                        &mut count,
                    ),
                )
            });
            let _ = lt::cublasLtMatmulPreferenceDestroy(preference);
            result?;
            if count == 0 {
                return Err(error(format!("cuBLASLt has no algorithm for {p:?}")));
            }
            // Plain numbers, of which zeros are as valid as any.
            proposed = found.assume_init()[..count as usize].iter().map(|f| f.algo).collect::<Vec<_>>();
            plan.algo = proposed[0];
        }
        Ok((plan, proposed))
    }
}

impl Plan {
    fn set_tokens(&self, tokens: usize) -> Result<()> {
        let (tokens, cols) = (tokens as u64, lt::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS);
        for layout in [self.x, self.out] {
            // SAFETY: a layout of ours; the library copies eight bytes.
            let result =
                unsafe { lt::cublasLtMatrixLayoutSetAttribute(layout, cols, (&raw const tokens).cast(), mem::size_of_val(&tokens)) };
            check("cublasLtMatrixLayoutSetAttribute", result)?;
        }
        Ok(())
    }
}

/// The number of tokens that an algorithm is chosen for: up to a quarter more, so that a few choices serve all prompts.
fn bucket(tokens: usize) -> usize {
    tokens.next_multiple_of((tokens.next_power_of_two() / 8).max(64))
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

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn a_few_buckets_serve_all_prompts() {
        let mut buckets: Vec<usize> = (128..=8192).map(bucket).collect();
        assert!((128..=8192).zip(&buckets).all(|(tokens, &bucket)| tokens <= bucket && bucket - tokens < (tokens / 4).max(64)));
        buckets.dedup();
        assert_eq!(buckets[..6], [128, 192, 256, 320, 384, 448]);
        assert!(buckets.len() <= 25 && buckets.ends_with(&[6144, 7168, 8192]));
    }
}
