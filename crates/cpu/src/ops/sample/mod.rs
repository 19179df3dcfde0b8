//! Picks the next token of every sequence, a sequence per chunk.
//!
//! Decides as the definition does, in f64, without its sort: a token wins by `logit + noise`, the noise is never above
//! 16.7, so most tokens are out before their noise is known. Top-k selects among the maxima of 64 tokens each; top-p sums
//! probabilities into bins of equal logit and sorts only the bin where the sum crosses. What lies too close to call, or
//! holds a NaN, is decided by the definition itself.
//!
//! One row of 262144 tokens on one core of an AMD EPYC Zen 4, busy machine (2026-11-23, `cargo run --release -p ferrum-cpu
//! --example perf -- sample 1`): greedy 11 µs, top-k 40 0.19 ms, temperature alone 1.5 ms, top-p 0.9 alone 4.0 ms.

mod exact;
mod noise;
mod top;

use std::cell::RefCell;

use ferrum_kernels::{
    Result,
    ops::{Sample, SampleParams, token_noise},
};

use self::{
    noise::{MAX_NOISE, NOISE_BOUNDS, philox_chunk},
    top::Cut,
};
use super::simd::{Vector, at_level};
use crate::{
    Simd,
    pool::Pool,
    storage::{Rows, View},
};

/// Tokens whose largest logit is kept, to skip them together.
const CHUNK: usize = 64;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What one worker computes in; grows to the largest vocabulary it has seen.
#[derive(Debug, Default)]
struct Scratch {
    /// Logits after penalties, divided by the temperature
    scaled: Vec<f64>,
    /// The largest of each [`CHUNK`]
    maxima: Vec<f64>,
    selected: Vec<f64>,
    order: Vec<u32>,
    /// Probability per bin of logits
    mass: Vec<f64>,
}

pub(crate) fn run(pool: &Pool, level: Simd, op: &Sample) -> Result<()> {
    op.check()?;
    let (logits, out) = (Rows::<f32>::of("sample", "logits", op.logits)?, View::<i32, 1>::of("sample", "out", op.out)?);
    let params = op.params.map(|p| Rows::<u8>::of("sample", "params", p)).transpose()?;
    let counts = op.counts.map(|c| Rows::<i32>::of("sample", "counts", c)).transpose()?;
    if op.logits.elements() == 0 {
        return Ok(());
    }
    pool.chunks(logits.shape[0], 1, &|_, seqs| {
        for seq in seqs {
            // SAFETY: in bounds by the contract; each sequence belongs to one chunk, and no two share a counts row. The
            // level is the backend's.
            unsafe {
                let p = params.map_or(SampleParams::GREEDY, |params| {
                    bytemuck::pod_read_unaligned(&params.row([seq, 0])[..size_of::<SampleParams>()])
                });
                let counts = counts.filter(|c| (0..c.shape[0] as i32).contains(&p.counts_row));
                let mut counts = counts.map(|c| c.row_mut([p.counts_row as usize, 0]));
                let token = SCRATCH.with_borrow_mut(|s| draw(level, logits.row([seq, 0]), counts.as_deref(), &p, s));
                if let Some(counts) = &mut counts {
                    counts[token] = counts[token].wrapping_add(1);
                }
                *out.at([seq]) = token as i32;
            }
        }
    });
    Ok(())
}

/// # Safety
/// The processor has the level.
unsafe fn draw(level: Simd, logits: &[f32], counts: Option<&[i32]>, p: &SampleParams, s: &mut Scratch) -> usize {
    let idle = p.repetition_penalty == 1.0 && p.presence_penalty == 0.0 && p.frequency_penalty == 0.0;
    let counts = counts.filter(|_| !idle);
    let greedy = p.temperature <= 0.0;
    let temperature = if greedy { 1.0 } else { f64::from(p.temperature) };
    match counts {
        // SAFETY: promised by the caller.
        None if greedy => return unsafe { at_level!(level, argmax(logits: &[f32]) -> usize) },
        None => {
            s.scaled.resize(logits.len(), 0.0);
            let scaled = &mut s.scaled[..];
            // SAFETY: promised by the caller.
            unsafe { at_level!(level, divide(logits: &[f32], temperature: f64, scaled: &mut [f64])) };
        }
        Some(counts) => {
            s.scaled.clear();
            s.scaled.extend(logits.iter().zip(counts).map(|(&l, &count)| penalize(l.into(), count, p) / temperature));
        }
    }
    if greedy {
        return largest(s.scaled.iter().copied().enumerate());
    }
    s.maxima.resize(s.scaled.len().div_ceil(CHUNK), 0.0);
    let (scaled, maxima) = (&s.scaled[..], &mut s.maxima[..]);
    // SAFETY: promised by the caller.
    let ordinary = unsafe { at_level!(level, chunk_maxima(scaled: &[f64], maxima: &mut [f64]) -> bool) };
    let max = s.maxima.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !ordinary || max == f64::NEG_INFINITY {
        return exact::draw(s, p);
    }
    // The likeliest token has probability 1 relative to itself, so only a bound above 1 (or NaN) drops everything.
    if p.min_p > 1.0 || p.min_p.is_nan() {
        return 0;
    }
    if p.top_k > 0 && (p.top_k as usize) < s.scaled.len() {
        top::select(s, p.top_k as usize);
        return exact::draw_sorted(&s.scaled, &mut s.order, p);
    }
    let cut = if p.top_p <= 0.0 {
        s.scaled.iter().position(|&v| v == max).map(|token| Cut { logit: max, token: token as u32 })
    } else if p.top_p < 1.0 {
        // SAFETY: promised by the caller.
        match unsafe { top::nucleus(level, s, p.top_p.into(), max) } {
            Some(cut) => Some(cut),
            None => return exact::draw(s, p),
        }
    } else {
        // A sum over everything may reach its own total early by rounding, but not before tokens that cannot win.
        None
    };
    // SAFETY: promised by the caller.
    unsafe { draw_kept(level, s, p, cut, max) }
}

/// The kept token with the largest logit plus noise.
unsafe fn draw_kept(level: Simd, s: &Scratch, p: &SampleParams, cut: Option<Cut>, max: f64) -> usize {
    let (seed, position, min_p) = (p.seed, p.position, f64::from(p.min_p));
    let noise = |token: u32| f64::from(token_noise(seed, position, token));
    // The likeliest token is always kept, and its score rules most others out.
    let mut best = s.scaled.iter().position(|&v| v == max).unwrap_or(0) as u32;
    let mut score = max + noise(best);
    let (mut random, bounds) = ([0; CHUNK], &*NOISE_BOUNDS);
    for (chunk, (scaled, &chunk_max)) in s.scaled.chunks(CHUNK).zip(&s.maxima).enumerate() {
        if chunk_max + MAX_NOISE < score || cut.is_some_and(|c| chunk_max < c.logit) {
            continue;
        }
        let (first, out) = ((chunk * CHUNK) as u32, &mut random);
        // SAFETY: promised by the caller.
        unsafe { at_level!(level, philox_chunk(seed: u64, position: u32, first: u32, out: &mut [u32; CHUNK])) };
        for ((token, &logit), bits) in (first..).zip(scaled).zip(random) {
            if logit + f64::from(bounds[(bits >> 24) as usize]) < score || cut.is_some_and(|c| !c.keeps(logit, token)) {
                continue;
            }
            let with_noise = logit + noise(token);
            let better = with_noise > score || with_noise == score && token < best;
            if better && (logit - max).exp() >= min_p {
                (best, score) = (token, with_noise);
            }
        }
    }
    best as usize
}

fn penalize(logit: f64, count: i32, p: &SampleParams) -> f64 {
    let generated = count & (Sample::IN_PROMPT - 1);
    let mut logit = logit;
    if count != 0 {
        let factor = f64::from(p.repetition_penalty);
        logit = if logit > 0.0 { logit / factor } else { logit * factor };
    }
    if generated > 0 {
        logit -= f64::from(p.presence_penalty) + f64::from(p.frequency_penalty) * f64::from(generated);
    }
    logit
}

/// The first index of the largest value, NaN passed over; 0 when there is none above −∞.
fn largest(values: impl Iterator<Item = (usize, f64)>) -> usize {
    values.fold((0, f64::NEG_INFINITY), |best, v| if v.1 > best.1 { v } else { best }).0
}

/// As [`largest`]: the maximum of each chunk first, then the first index that has it.
#[inline(always)]
unsafe fn argmax<V: Vector>(logits: &[f32]) -> usize {
    let (mut max, mut at) = (f32::NEG_INFINITY, 0);
    for (chunk, values) in logits.chunks(16 * CHUNK).enumerate() {
        // SAFETY: vectors end at or before the end of the chunk. `max` returns its second operand for NaN, so the
        // accumulators stay numbers.
        let chunk_max = unsafe {
            let mut acc = [V::splat(f32::NEG_INFINITY); 4];
            let mut i = 0;
            while i + 4 * V::LANES <= values.len() {
                for (lane, acc) in acc.iter_mut().enumerate() {
                    *acc = V::load(values.as_ptr().add(i + lane * V::LANES)).max(*acc);
                }
                i += 4 * V::LANES;
            }
            let vectors = acc[0].max(acc[1]).max(acc[2].max(acc[3])).max_lane();
            values[i..].iter().fold(vectors, |a, &b| if b > a { b } else { a })
        };
        if chunk_max > max {
            (max, at) = (chunk_max, chunk);
        }
    }
    let start = at * 16 * CHUNK;
    logits[start..].iter().position(|&v| v == max && max > f32::NEG_INFINITY).map_or(0, |i| start + i)
}

#[inline(always)]
unsafe fn divide<V: Vector>(logits: &[f32], by: f64, out: &mut [f64]) {
    for (o, &l) in out.iter_mut().zip(logits) {
        *o = f64::from(l) / by;
    }
}

/// Writes the largest value of each chunk; false when one is NaN or +∞.
#[inline(always)]
unsafe fn chunk_maxima<V: Vector>(scaled: &[f64], maxima: &mut [f64]) -> bool {
    let mut ordinary = true;
    for (chunk, max) in scaled.chunks(CHUNK).zip(maxima) {
        let (mut lanes, mut odd) = ([f64::NEG_INFINITY; 8], [0u64; 8]);
        let eights = chunk.chunks_exact(8);
        for (i, &v) in eights.remainder().iter().enumerate() {
            lanes[i] = v;
            odd[i] = u64::from(v.is_nan());
        }
        for eight in eights {
            for i in 0..8 {
                lanes[i] = if eight[i] > lanes[i] { eight[i] } else { lanes[i] };
                odd[i] |= u64::from(eight[i].is_nan());
            }
        }
        *max = lanes.into_iter().fold(f64::NEG_INFINITY, f64::max);
        ordinary &= odd == [0; 8] && *max < f64::INFINITY;
    }
    ordinary
}
