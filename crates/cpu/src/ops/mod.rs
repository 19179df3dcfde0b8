//! The operations other than `linear` and `embed`, one file each, as `run(pool, level, op)`.

pub(crate) mod act_mul;
pub(crate) mod add_rms_norm;
pub(crate) mod attention;
pub(crate) mod gather_rows;
pub(crate) mod kv_write;
pub(crate) mod logits_mask;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod simd;
pub(crate) mod simd_math;
pub(crate) mod softcap;

/// Elements that one thread handles in less time than a second one takes to join (some five microseconds).
const CHUNK_ELEMENTS: usize = 16 << 10;

/// Rows of `width` elements that make one chunk of work.
fn rows_per_chunk(width: usize) -> usize {
    (CHUNK_ELEMENTS / width.max(1)).max(1)
}

/// Moves `n < LANES` elements into a vector's worth of zeros, and back: the tail of a row.
struct Tail([f32; 16]);

impl Tail {
    /// # Safety
    /// `from` points to `n ≤ 16` elements.
    #[inline(always)]
    unsafe fn read(from: *const f32, n: usize) -> Self {
        let mut tail = Self([0.0; 16]);
        // SAFETY: promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(from, tail.0.as_mut_ptr(), n) };
        tail
    }

    /// # Safety
    /// `to` points to `n ≤ 16` elements.
    #[inline(always)]
    unsafe fn write(&self, to: *mut f32, n: usize) {
        // SAFETY: promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, n) };
    }
}
