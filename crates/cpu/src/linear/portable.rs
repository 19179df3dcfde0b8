//! `linear` in plain Rust: each row is dequantised once and multiplied with every token. For processors without kernels
//! of their own; the loops have the form that compilers vectorise.

use ferrum_kernels::quant;

use super::Job;
use crate::pool::Pool;

/// `rows`: per worker, memory for one row of F32.
pub(super) fn run(pool: &Pool, rows: &mut [Vec<f32>], job: &Job) {
    let (memory, part) = (Memory(rows.as_mut_ptr()), job.part);
    let chunk = part.rows.div_ceil(8 * pool.workers());
    pool.chunks(part.rows, chunk, &|worker, range| {
        // SAFETY: there is one vector per worker, and only this worker uses its own.
        let row = unsafe { &mut (&mut *memory.of(worker))[..job.cols] };
        for r in range {
            let packed = &part.stored()[r * part.row_bytes..][..part.row_bytes];
            quant::dequantize(part.dtype, packed, row).expect("prepare checked dtype and row length");
            for token in 0..job.x.shape[0] {
                // SAFETY: in bounds by the contract; rows are disjoint between chunks, and `x` does not overlap `out`.
                unsafe { *job.out.at([token, part.first_row + r]) = dot(row, job.x.row([token, 0])) + job.addend(token, r) };
            }
        }
    });
}

struct Memory(*mut Vec<f32>);
// SAFETY: each worker uses only its own vector.
unsafe impl Sync for Memory {}

impl Memory {
    fn of(&self, worker: usize) -> *mut Vec<f32> {
        self.0.wrapping_add(worker)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for l in 0..16 {
            lanes[l] += a[l] * b[l];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}
