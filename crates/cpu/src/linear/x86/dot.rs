//! `linear` for few tokens: dot products of packed rows with 8-bit activations.
//!
//! `out[t][r] = Σ_b scale · d · (code · q) + min · (d · Σ q)` over the blocks `b` of 32 elements. A few rows are walked
//! together, which hides the latency of the sums and shares the activations; each unpacked group of codes meets up to
//! four tokens while it is in a register. Bound by reading the weights.
//!
//! Measured with `examples/linear_speed` on one thread of an AMD EPYC (Zen 4), [2048, 4096], one token, GB/s of weights per
//! second of processor time while other programs shared the machine, 2026-11-23: AVX-512 level Q4_1 11.4, Q5_0 11.6,
//! Q8_0 13.1, Q4_K 10.4, Q6_K 9.4; AVX2 level 9.3, 9.3, 12.9, 8.3, 8.6.

use std::{arch::x86_64::*, ops::Range};

use super::{
    super::{
        Job,
        activations::{ActivationRows, one_hot},
    },
    formats::Format,
    isa::{Isa, sum},
};

/// Computes `rows` of the part for all tokens.
///
/// # Safety
/// The processor has AVX2, FMA, F16C and `I`; the part has `F`'s dtype; `rows` lie in it and no other thread writes them
/// to `job.out`; `acts` holds the tokens of `job.x`.
#[inline(always)]
pub(super) unsafe fn chunk<I: Isa, F: Format>(job: &Job, acts: &ActivationRows, rows: Range<usize>) {
    let tokens = job.x.shape[0];
    for first in rows.clone().step_by(4) {
        if tokens == 1 {
            if F::GROUPS == 1 {
                some::<I, F, 4, 1>(job, acts, 0, first, rows.end);
            } else {
                some::<I, F, 2, 1>(job, acts, 0, first, rows.end);
                some::<I, F, 2, 1>(job, acts, 0, first + 2, rows.end);
            }
            continue;
        }
        for first in [first, first + 2] {
            let mut token = 0;
            while token < tokens {
                token += match tokens - token {
                    1 => some::<I, F, 2, 1>(job, acts, token, first, rows.end),
                    2 | 3 => some::<I, F, 2, 2>(job, acts, token, first, rows.end),
                    _ => some::<I, F, 2, 4>(job, acts, token, first, rows.end),
                };
            }
        }
    }
}

/// `R` rows from `first` (those from `end` on are left out), `T` tokens from `token`. Returns `T`.
#[inline(always)]
unsafe fn some<I: Isa, F: Format, const R: usize, const T: usize>(
    job: &Job,
    acts: &ActivationRows,
    token: usize,
    first: usize,
    end: usize,
) -> usize {
    if first >= end {
        return T;
    }
    let weights = job.part.data.as_slice().as_ptr();
    // Loops and not closures: those would not be inlined and so miss the instruction set.
    let mut rows = [weights; R];
    for r in 0..R {
        rows[r] = weights.add((first + r).min(end - 1) * job.part.row_bytes);
    }
    let mut tokens = [*acts; T];
    for t in 0..T {
        tokens[t] = acts.from(token + t);
    }
    let sums = dots::<I, F, R, T>(rows, job.part.row_bytes, tokens);
    for t in 0..T {
        for r in 0..R.min(end - first) {
            *job.out.at([token + t, job.part.first_row + first + r]) = sums[t][r] + job.bias(first + r);
        }
    }
    T
}

#[inline(always)]
unsafe fn dots<I: Isa, F: Format, const R: usize, const T: usize>(
    rows: [*const u8; R],
    row_bytes: usize,
    acts: [ActivationRows; T],
) -> [[f32; R]; T] {
    let has_mins = F::HALVES || (F::CENTRE.is_none() && !F::SIGNED);
    let mut acc = [[_mm256_setzero_ps(); R]; T];
    let mut from_mins = [[_mm256_setzero_ps(); R]; T];
    for block in 0..acts[0].blocks / F::GROUPS {
        for r in 0..R {
            let packed = rows[r].add(block * F::BYTES);
            // The same place of the row that this lane takes next.
            _mm_prefetch(packed.wrapping_add(R * row_bytes).cast(), _MM_HINT_T0);
            if F::BYTES > 64 {
                _mm_prefetch(packed.wrapping_add(R * row_bytes + 64).cast(), _MM_HINT_T0);
            }
            if F::BYTES > 128 {
                _mm_prefetch(packed.wrapping_add(R * row_bytes + 128).cast(), _MM_HINT_T0);
            }
            let head = F::head(packed);
            let mut factors = [[_mm256_setzero_ps(); 2]; T];
            for t in 0..T {
                if F::GROUPS == 1 {
                    factors[t][0] = _mm256_mul_ps(head.scales[0], _mm256_broadcast_ss(&*acts[t].scales.add(block)));
                    if has_mins {
                        let sums = _mm256_broadcast_ss(&*acts[t].sums.add(block));
                        from_mins[t][r] = _mm256_fmadd_ps(head.mins[0], sums, from_mins[t][r]);
                    }
                } else if F::HALVES {
                    let d = _mm256_loadu_ps(acts[t].scales.add(8 * block));
                    for h in 0..2 {
                        let twice = _mm256_permutevar8x32_ps(d, lanes(4 * h as i32, 2));
                        factors[t][h] = _mm256_mul_ps(head.scales[h], twice);
                        let sums = _mm256_loadu_ps(acts[t].half_sums.add(16 * block + 8 * h));
                        from_mins[t][r] = _mm256_fmadd_ps(head.mins[h], sums, from_mins[t][r]);
                    }
                } else {
                    factors[t][0] = _mm256_mul_ps(head.scales[0], _mm256_loadu_ps(acts[t].scales.add(8 * block)));
                    if has_mins {
                        let sums = _mm256_loadu_ps(acts[t].sums.add(8 * block));
                        from_mins[t][r] = _mm256_fmadd_ps(head.mins[0], sums, from_mins[t][r]);
                    }
                }
            }
            for group in 0..F::GROUPS {
                let codes = F::codes::<I>(packed, group);
                for t in 0..T {
                    let at = block * F::GROUPS + group;
                    let a = _mm256_loadu_si256(acts[t].codes.add(32 * at).cast());
                    let dot = _mm256_cvtepi32_ps(dot_centred::<I, F>(codes, a, acts[t].minus_codes.add(at)));
                    let factor = if F::GROUPS == 1 {
                        factors[t][0]
                    } else if F::HALVES {
                        _mm256_permutevar8x32_ps(factors[t][group / 4], lanes(2 * (group % 4) as i32, 4))
                    } else {
                        _mm256_permutevar8x32_ps(factors[t][0], _mm256_set1_epi32(group as i32))
                    };
                    acc[t][r] = _mm256_fmadd_ps(dot, factor, acc[t][r]);
                }
            }
        }
    }
    for t in 0..T {
        for (column, x) in (*acts[t].outliers).iter() {
            let (group, a) = (column / 32 % F::GROUPS, _mm256_loadu_si256(one_hot(column).cast()));
            // Of a block with more than one group, `sums` below has eight lanes but `min` counts once.
            let (of_scale, of_min) = (_mm256_set1_ps(x), _mm256_set1_ps(if F::GROUPS == 1 { x } else { x * 0.125 }));
            for r in 0..R {
                let packed = rows[r].add(column / 32 / F::GROUPS * F::BYTES);
                let (mut scale, mut min) = scale_and_min::<F>(packed, column);
                let dot = _mm256_cvtepi32_ps(dot_centred::<I, F>(F::codes::<I>(packed, group), a, &-1));
                (scale, min) = (_mm256_mul_ps(scale, of_scale), _mm256_mul_ps(min, of_min));
                acc[t][r] = _mm256_fmadd_ps(dot, scale, acc[t][r]);
                from_mins[t][r] = _mm256_add_ps(from_mins[t][r], min);
            }
        }
    }
    let mut out = [[0.0; R]; T];
    for t in 0..T {
        for r in 0..R {
            out[t][r] = sum(acc[t][r]);
            if has_mins {
                // Of a block with one group, all eight lanes have counted the minimum.
                out[t][r] += sum(from_mins[t][r]) * if F::GROUPS == 1 { 0.125 } else { 1.0 };
            }
        }
    }
    out
}

/// Scale and minimum of one column of the block, in all lanes.
#[inline(always)]
unsafe fn scale_and_min<F: Format>(packed: *const u8, column: usize) -> (__m256, __m256) {
    let head = F::head(packed);
    if F::GROUPS == 1 {
        return (head.scales[0], head.mins[0]);
    }
    let (half, lane) = if F::HALVES { (column / 128 % 2, column / 16 % 8) } else { (0, column / 32 % 8) };
    let lane = _mm256_set1_epi32(lane as i32);
    (_mm256_permutevar8x32_ps(head.scales[half], lane), _mm256_permutevar8x32_ps(head.mins[half], lane))
}

/// Lane numbers from `first` on, each `times` times.
#[inline(always)]
unsafe fn lanes(first: i32, times: i32) -> __m256i {
    let n = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_srl_epi32(n, _mm_cvtsi32_si128(times.ilog2() as i32)))
}

/// `Σ (code − centre) · a`, spread over eight lanes. The centre is exact in integers: `−Σ a` is known per group.
#[inline(always)]
unsafe fn dot_centred<I: Isa, F: Format>(codes: __m256i, a: __m256i, minus_codes: *const i32) -> __m256i {
    let zero = _mm256_setzero_si256();
    let shift = if F::SIGNED { 7 } else { F::CENTRE.unwrap_or(0) };
    let minus = _mm256_zextsi128_si256(_mm_sll_epi32(_mm_cvtsi32_si128(*minus_codes), _mm_cvtsi32_si128(shift)));
    if F::SIGNED && I::WIDE {
        return I::dot(minus, _mm256_xor_si256(codes, _mm256_set1_epi8(-128)), a);
    }
    if F::SIGNED {
        return I::dot(zero, _mm256_abs_epi8(codes), _mm256_sign_epi8(a, codes));
    }
    I::dot(if F::CENTRE.is_some() { minus } else { zero }, codes, a)
}
