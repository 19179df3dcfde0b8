//! How fast this machine reads memory, which is what bounds generation.

use std::{hint::black_box, slice, thread, time::Instant};

use ferrum_kernels::Result;

use crate::storage::CpuStorage;

const PASSES: usize = 5;

/// Bytes per second at which `threads` together read `bytes` of memory in huge pages: the best of five passes.
///
/// # Errors
/// When memory is short.
pub fn read_bandwidth(threads: usize, bytes: usize) -> Result<f64> {
    let memory = CpuStorage::zeroed(bytes.next_multiple_of(64))?;
    // SAFETY: exactly the memory of the storage, page-aligned, and every bit pattern is a number.
    let words = unsafe { slice::from_raw_parts_mut(memory.as_ptr().cast::<u64>(), bytes.next_multiple_of(64) / 8) };
    // The system backs memory with pages of its own only once it is written.
    words.fill(1);
    let words = &*words;
    let pass = || {
        let started = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads.max(1)).next_multiple_of(64)) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        bytes as f64 / started.elapsed().as_secs_f64()
    };
    Ok((0..PASSES).map(|_| pass()).fold(0.0, f64::max))
}

/// Four streams, so that more lines are under way than one stream keeps.
fn sum(words: &[u64]) -> u64 {
    let quarter = words.len() / 4;
    let (a, rest) = words.split_at(quarter);
    let (b, rest) = rest.split_at(quarter);
    let (c, d) = rest.split_at(quarter);
    let mut sums = [[0u64; 8]; 4];
    for (((a, b), c), d) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).zip(c.as_chunks::<8>().0).zip(d.as_chunks::<8>().0) {
        for (sum, part) in sums.iter_mut().zip([a, b, c, d]) {
            for (sum, word) in sum.iter_mut().zip(part) {
                *sum ^= word;
            }
        }
    }
    sums.iter().flatten().fold(0, |all, s| all ^ s)
}
