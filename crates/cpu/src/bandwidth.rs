//! How fast this machine reads memory, which is what bounds generation.

use std::{array, hint::black_box, slice, thread, time::Instant};

use ferrum_kernels::Result;

use crate::storage::CpuStorage;

const PASSES: usize = 5;

/// Bytes per second at which `threads` together read `bytes` of memory in huge pages: the best of five passes of each of two loops.
/// One stream a thread is the faster one from memory, four from caches.
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
    let pass = |sum: fn(&[u64]) -> u64| {
        let started = Instant::now();
        thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads.max(1)).next_multiple_of(64)) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        bytes as f64 / started.elapsed().as_secs_f64()
    };
    Ok((0..PASSES).map(|_| pass(sum::<1>).max(pass(sum::<4>))).fold(0.0, f64::max))
}

/// Reads as many streams side by side.
fn sum<const STREAMS: usize>(words: &[u64]) -> u64 {
    let lines = words.as_chunks::<8>().0;
    let length = lines.len() / STREAMS;
    let streams: [_; STREAMS] = array::from_fn(|n| &lines[n * length..][..length]);
    let mut sums = [[0u64; 8]; STREAMS];
    for line in 0..length {
        for (sum, stream) in sums.iter_mut().zip(streams) {
            for (sum, word) in sum.iter_mut().zip(&stream[line]) {
                *sum ^= word;
            }
        }
    }
    sums.iter().flatten().fold(0, |all, s| all ^ s)
}
