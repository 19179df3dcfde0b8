//! `sample`: `kernels/sample.cu`.

use ferrum_kernels::{Result, ops::Sample};

use crate::{
    context::Context,
    driver::{DevicePtr, Grid},
    storage::{has_packs, ptr, ptr_or_null, stride},
};

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleParams {
    logits: DevicePtr,
    rows: DevicePtr,
    counts: DevicePtr,
    out: DevicePtr,
    joined: DevicePtr,
    logits_stride: i64,
    counts_stride: i64,
    seqs: i32,
    counts_rows: i32,
    vocab: i32,
    packs: i32,
    part: i32,
    parts: i32,
    slice: i32,
    cluster: i32,
    cached: i32,
}

/// `PART_THREADS` of the kernel `sample`.
const PART_THREADS: u32 = 256;
/// Blocks of `sample` for each multiprocessor, two rounds of those that run at once.
const PARTS_PER_SM: usize = 8;
/// `THREADS` of the kernel `sample_filtered`.
const THREADS: u32 = 512;
/// Blocks of the largest cluster that every device with clusters has.
const MAX_CLUSTER: usize = 8;
/// Fewer elements are not worth a block of their own.
const MIN_SLICE: usize = 2048;
/// Dynamic shared memory besides the slice: two histograms of three arrays of 2048.
const HISTOGRAM_BYTES: usize = 2 * 3 * 2048 * 4;
/// Shared memory that a block has besides its slice, rounded up.
const FIXED_SHARED_BYTES: usize = HISTOGRAM_BYTES + 1024;

pub(crate) fn sample(cx: &Context, op: &Sample) -> Result<()> {
    op.check()?;
    let [seqs, vocab] = [op.logits.shape()[0], op.logits.shape()[1]];
    let attributes = cx.device().attributes();
    let sms = attributes.sms as usize;
    let filtered = cx.kernel("sample", "sample_filtered")?;
    let has_clusters = filtered.architecture() >= 90;
    let Split { cluster, slice, cached } = split(vocab, has_clusters, attributes.block_shared_bytes);
    let (parts, part) = parts(seqs, vocab, sms);
    let counts = op.counts;
    let packs = has_packs(&[op.logits])? && counts.map_or(Ok(true), |c| has_packs(&[c]))?;
    let params = SampleParams {
        logits: ptr(op.logits)?,
        rows: ptr_or_null(op.params)?,
        counts: ptr_or_null(counts)?,
        out: ptr(op.out)?,
        joined: if parts > 1 { cx.counters(4 * seqs)? } else { 0 },
        logits_stride: stride(op.logits, 0),
        counts_stride: counts.map_or(0, |c| stride(c, 0)),
        seqs: seqs as i32,
        counts_rows: counts.map_or(0, |c| c.shape()[0] as i32),
        vocab: vocab as i32,
        packs: packs.into(),
        part: part as i32,
        parts: parts as i32,
        slice: slice as i32,
        cluster: cluster as i32,
        cached: cached.into(),
    };
    // SAFETY: the contract holds, so all four have the sizes that the kernel documents.
    unsafe { cx.launch("sample", "sample", Grid::new(seqs * parts, PART_THREADS), &params)? };
    if op.params.is_none() {
        return Ok(());
    }
    let shared_bytes = (HISTOGRAM_BYTES + if cached { 4 * slice } else { 0 }) as u32;
    // As many clusters as run at once go through the rows.
    let clusters = seqs.min((2 * sms / cluster).max(1));
    let grid = Grid { shared_bytes, cluster: cluster as u32, ..Grid::new(clusters * cluster, THREADS) };
    // SAFETY: as above.
    unsafe { filtered.launch(cx.stream(), grid, &params) }
}

/// How the vocabulary of one row is spread over blocks.
#[derive(Debug, PartialEq, Eq)]
struct Split {
    cluster: usize,
    /// Elements of a block, a multiple of 4
    slice: usize,
    /// Whether a slice stays in shared memory
    cached: bool,
}

fn split(vocab: usize, has_clusters: bool, block_shared_bytes: usize) -> Split {
    let wanted = vocab.div_ceil(MIN_SLICE).next_power_of_two().min(MAX_CLUSTER);
    let cluster = if has_clusters { wanted } else { 1 };
    let slice = vocab.div_ceil(cluster).next_multiple_of(4);
    Split { cluster, slice, cached: 4 * slice + FIXED_SHARED_BYTES <= block_shared_bytes }
}

/// Blocks of a row that is not filtered, as many as fill the device, and the elements of each.
fn parts(seqs: usize, vocab: usize, sms: usize) -> (usize, usize) {
    let parts = (PARTS_PER_SM * sms).div_ceil(seqs.max(1)).clamp(1, vocab.div_ceil(MIN_SLICE).max(1));
    (parts, vocab.div_ceil(parts).next_multiple_of(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_every_vocabulary() {
        for vocab in [1, 33, 2048, 2049, 5000, 40_003, 128_256, 262_144, 1_000_001] {
            for (has_clusters, shared) in [(false, 99 << 10), (true, 227 << 10)] {
                let s = split(vocab, has_clusters, shared);
                assert!(s.cluster.is_power_of_two() && s.cluster <= MAX_CLUSTER && s.slice.is_multiple_of(4), "{vocab}: {s:?}");
                assert!(s.slice * s.cluster >= vocab && (s.slice - 4) * s.cluster < vocab, "{vocab}: {s:?}");
                for seqs in [1, 7, 256] {
                    let (parts, part) = parts(seqs, vocab, 132);
                    assert!(parts * part >= vocab && part.is_multiple_of(4), "{seqs} × {vocab}: {parts} of {part}");
                }
                assert!(!s.cached || 4 * s.slice + FIXED_SHARED_BYTES <= shared, "{vocab}: {s:?}");
            }
        }
        assert_eq!(split(262_144, true, 227 << 10), Split { cluster: 8, slice: 32_768, cached: true });
    }
}
