//! Biases and masks of logits, a part of a row per chunk.

use std::slice;

use ferrum_kernels::{
    Result,
    ops::{LogitBias, LogitsMask, LogitsMaskRow},
};

use crate::{Simd, pool::Pool, storage::Rows};

/// Elements of a chunk: whole words of a mask, and enough that another thread is worth its start.
const CHUNK_ELEMENTS: usize = 32 << 10;

pub(crate) fn run(pool: &Pool, _level: Simd, op: &LogitsMask) -> Result<()> {
    op.check()?;
    let (logits, rows) = (Rows::<f32>::of("logits_mask", "logits", op.logits)?, Rows::<u8>::of("logits_mask", "rows", op.rows)?);
    let biases = op.biases.map(|b| Rows::<u8>::of("logits_mask", "biases", b)).transpose()?;
    let masks = op.masks.map(|m| Rows::<i32>::of("logits_mask", "masks", m)).transpose()?;
    let [seqs, vocab] = logits.shape;
    let parts = vocab.div_ceil(CHUNK_ELEMENTS);
    pool.chunks(seqs * parts, 1, &|_, items| {
        for item in items {
            let (seq, start) = (item / parts, item % parts * CHUNK_ELEMENTS);
            // SAFETY: in bounds by the contract; each part of a row of logits belongs to one chunk.
            unsafe {
                let row: LogitsMaskRow = bytemuck::pod_read_unaligned(&rows.row([seq, 0])[..size_of::<LogitsMaskRow>()]);
                let part = slice::from_raw_parts_mut(logits.at([seq, start]), (vocab - start).min(CHUNK_ELEMENTS));
                if let Some(biases) = biases {
                    let first = (row.bias_start as usize).min(biases.shape[0]);
                    let last = first.saturating_add(row.biases as usize).min(biases.shape[0]);
                    for entry in first..last {
                        let LogitBias { token, bias } = bytemuck::pod_read_unaligned(&biases.row([entry, 0])[..size_of::<LogitBias>()]);
                        if let Some(logit) = (token as usize).checked_sub(start).and_then(|t| part.get_mut(t)) {
                            *logit += bias;
                        }
                    }
                }
                let mask = masks.filter(|m| (0..m.shape[0] as i32).contains(&row.mask));
                if let Some(masks) = mask {
                    ban(part, &masks.row([row.mask as usize, 0])[start / 32..]);
                }
            }
        }
    });
    Ok(())
}

/// Whole words first: most of a grammar's masks are all zeros or all ones.
fn ban(logits: &mut [f32], mask: &[i32]) {
    for (logits, &word) in logits.chunks_mut(32).zip(mask) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            -1 => {}
            word => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 0 { f32::NEG_INFINITY } else { *logit };
                }
            }
        }
    }
}
