//! Picks the next token of every sequence on the device, reproducibly.
//!
//! For each row, in this order: penalties, then `temperature = 0` takes the largest logit (lowest id on a tie);
//! otherwise logits are divided by the temperature, and top-k, top-p (Holtzman et al. 2019, arXiv:1904.09751) and min-p
//! (arXiv:2407.01082) each drop tokens. The survivor with the largest `logit + Gumbel noise` wins, which draws from
//! their softmax without a sort. The noise is a counter-based random number (Philox 4×32-10, Salmon et al. 2011) of
//! (seed, position, token id) alone, so neither batch nor backend changes the draw.

use crate::{
    Contract, DTypes, Result, Tensor, host,
    testkit::{Case, Launch, Tolerance},
};

/// Sampling parameters of one row, in the form that is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SampleParams {
    /// 0: greedy
    pub temperature: f32,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 1: all
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0: all
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (arXiv:1909.05858); 1: off
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output; 0: off
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output; 0: off
    pub frequency_penalty: f32,
    /// Keep this many likeliest tokens; 0: all
    pub top_k: u32,
    /// Index of the token to be drawn within its sequence
    pub position: u32,
    pub seed: u64,
    /// Row of `Sample::counts` that belongs to this sequence; negative: no penalties
    pub counts_row: i32,
    pub padding: u32,
}

impl SampleParams {
    /// The most likely token, no penalties.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        top_k: 0,
        position: 0,
        seed: 0,
        counts_row: -1,
        padding: 0,
    };
}

/// Arguments of `sample`.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// `[seqs, vocab]` F32, not changed
    pub logits: &'a Tensor,
    /// `[seqs, size_of::<SampleParams>()]` U8; `None`: all rows [`SampleParams::GREEDY`]
    pub params: Option<&'a Tensor>,
    /// `[rows, vocab]` I32: occurrences in the output, plus [`Sample::IN_PROMPT`] if in the prompt. The drawn token's
    /// count is raised.
    pub counts: Option<&'a Tensor>,
    /// `[seqs]` I32
    pub out: &'a Tensor,
}

impl Sample<'_> {
    /// Added to the count of a token that occurs in the prompt.
    pub const IN_PROMPT: i32 = 1 << 30;

    /// # Errors
    /// When an argument breaks the contract.
    pub fn check(&self) -> Result<()> {
        let mut c = Contract::new("sample");
        c.tensor("logits", self.logits, ["seqs", "vocab"], DTypes::F32)?;
        c.tensor("out", self.out, ["seqs"], DTypes::I32)?;
        if let Some(params) = self.params {
            c.define("params_bytes", size_of::<SampleParams>());
            c.tensor("params", params, ["seqs", "params_bytes"], DTypes::U8)?;
        }
        match self.counts {
            Some(counts) => c.tensor("counts", counts, ["rows", "vocab"], DTypes::I32),
            None => Ok(()),
        }
    }

    pub(crate) fn reference(&self) -> Result<()> {
        self.check()?;
        let vocab = self.logits.shape()[1];
        let mut logits = host::read(self.logits)?;
        let mut rows = vec![SampleParams::GREEDY; self.logits.shape()[0]];
        if let Some(params) = self.params {
            host::read_bytes(params, bytemuck::cast_slice_mut(&mut rows))?;
        }
        let mut tokens = Vec::new();
        for (row, params) in logits.chunks_exact_mut(vocab).zip(rows) {
            let counts = self.counts.filter(|c| (0..c.shape()[0] as i32).contains(&params.counts_row));
            let Some(counts) = counts.map(|c| c.narrow(0, params.counts_row as usize, 1)) else {
                tokens.push(draw(row, &params) as f64);
                continue;
            };
            let mut seen = host::read_i32(&counts)?;
            for (logit, &count) in row.iter_mut().zip(&seen) {
                *logit = penalize(*logit, count, &params);
            }
            let token = draw(row, &params);
            seen[token] += 1;
            tokens.push(token as f64);
            host::write(&counts, &seen.into_iter().map(f64::from).collect::<Vec<_>>())?;
        }
        host::write(self.out, &tokens)
    }
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

/// The lowest index of the largest value.
pub(super) fn argmax(values: &[f64]) -> usize {
    (0..values.len()).fold((0, f64::NEG_INFINITY), |best, i| if values[i] > best.1 { (i, values[i]) } else { best }).0
}

fn draw(logits: &[f64], p: &SampleParams) -> usize {
    if p.temperature <= 0.0 {
        return argmax(logits);
    }
    let scaled: Vec<f64> = logits.iter().map(|l| l / f64::from(p.temperature)).collect();
    let mut order: Vec<usize> = (0..scaled.len()).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]).then(a.cmp(&b)));
    if p.top_k > 0 {
        order.truncate(p.top_k as usize);
    }
    let max = scaled[order[0]];
    let total: f64 = order.iter().map(|&i| (scaled[i] - max).exp()).sum();
    let mut reached = 0.0;
    let kept = order.iter().take_while(|&&i| {
        let enough = reached >= f64::from(p.top_p) * total;
        reached += (scaled[i] - max).exp();
        !enough
    });
    let kept = kept.count().max(1);
    order.truncate(kept);
    order.retain(|&i| (scaled[i] - max).exp() >= f64::from(p.min_p));
    let mut keep = vec![false; scaled.len()];
    order.iter().for_each(|&i| keep[i] = true);
    let noisy = |(i, &value)| if keep[i] { value + f64::from(token_noise(p.seed, p.position, i as u32)) } else { f64::NEG_INFINITY };
    argmax(&scaled.iter().enumerate().map(noisy).collect::<Vec<f64>>())
}

/// Gumbel noise of one candidate: [`gumbel`] of its bits from [`philox`].
pub fn token_noise(seed: u64, position: u32, token: u32) -> f32 {
    gumbel(philox([token, position, 0, 0], [seed as u32, (seed >> 32) as u32])[0])
}

/// `−ln(−ln u)` with `u` in (0, 1) from the upper 23 bits: −2.9 to 16.7, rising with the bits.
pub fn gumbel(bits: u32) -> f32 {
    // Centred in its interval, `u` has 24 bits: with one more it would round to 1 once in 2²⁴ and its noise be infinite.
    let u = ((bits >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0);
    -(-u.ln()).ln()
}

/// Philox 4×32 with 10 rounds: 128 random bits that depend on nothing but counter and key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) = (u64::from(c0) * 0xD251_1F53, u64::from(c2) * 0xCD9E_8D57);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [c0, c1, c2, c3]
}

pub(super) fn cases() -> Vec<Case> {
    let g = SampleParams::GREEDY;
    let drawn = SampleParams { temperature: 0.8, seed: 42, ..g };
    [
        ("greedy", g),
        ("all greedy", g),
        ("temperature", drawn),
        ("high temperature", SampleParams { temperature: 5.0, ..drawn }),
        ("top_k=1", SampleParams { top_k: 1, ..drawn }),
        ("top_k=40", SampleParams { top_k: 40, ..drawn }),
        ("top_k above vocab", SampleParams { top_k: 1 << 20, ..drawn }),
        ("top_p=0.9", SampleParams { top_p: 0.9, ..drawn }),
        ("top_p=0.999", SampleParams { top_p: 0.999, ..drawn }),
        ("top_p=0.5 high temperature", SampleParams { top_p: 0.5, temperature: 5.0, ..drawn }),
        ("top_k=2000", SampleParams { top_k: 2000, ..drawn }),
        ("min_p above 1", SampleParams { min_p: 1.5, ..drawn }),
        ("top_p=0", SampleParams { top_p: 0.0, ..drawn }),
        ("min_p=0.1", SampleParams { min_p: 0.1, ..drawn }),
        ("all filters", SampleParams { top_k: 100, top_p: 0.95, min_p: 0.02, temperature: 1.3, ..drawn }),
        (
            "greedy with penalties",
            SampleParams { repetition_penalty: 1.5, presence_penalty: 0.5, frequency_penalty: 0.7, counts_row: 0, ..g },
        ),
        ("penalties", SampleParams { repetition_penalty: 1.2, presence_penalty: 0.5, frequency_penalty: 0.3, counts_row: 0, ..drawn }),
        ("masked greedy", g),
        ("masked", drawn),
        ("masked top_k above the allowed", SampleParams { top_k: 2000, ..drawn }),
        ("masked top_p=0.9", SampleParams { top_p: 0.9, temperature: 5.0, ..drawn }),
        (
            "masked all filters",
            SampleParams { top_k: 50, top_p: 0.95, min_p: 0.02, repetition_penalty: 1.2, presence_penalty: 0.5, counts_row: 0, ..drawn },
        ),
    ]
    .into_iter()
    .flat_map(|(name, params)| {
        [(7, 33), (7, 5000), (7, 40_003), (1, 262_144), (256, 128_256)].map(|(seqs, vocab)| (name, params, seqs, vocab))
    })
    .map(|(name, params, seqs, vocab)| {
        let case = Case::new("sample", format!("{name} seqs={seqs} vocab={vocab}"), Tolerance::EXACT, move |i| {
            let b = i.backend();
            let logits = i.normal_f32_scaled(&[seqs, vocab], 3.0)?;
            if name.starts_with("masked") {
                // As `logits_mask` leaves them: one token in 29 is allowed.
                let mut values = b.read_f32(&logits)?;
                values.iter_mut().enumerate().filter(|(n, _)| n % 29 != 5).for_each(|(_, v)| *v = f32::NEG_INFINITY);
                b.upload(&logits, bytemuck::cast_slice(&values))?;
            }
            let rows: Vec<SampleParams> = (0..seqs as u32)
                .map(|s| SampleParams {
                    position: params.position + 11 * s,
                    counts_row: if params.counts_row < 0 { -1 } else { s as i32 },
                    ..params
                })
                .collect();
            let params = b.zeros(crate::DType::U8, &[seqs, size_of::<SampleParams>()])?;
            b.upload(&params, bytemuck::cast_slice(&rows))?;
            let seen: Vec<i32> = (0..seqs * vocab)
                .map(|n| match n % 5 {
                    0 => Sample::IN_PROMPT + (n % 3) as i32,
                    1 => (n % 4) as i32,
                    _ => 0,
                })
                .collect();
            let counts = b.tensor_i32(&[seqs, vocab], &seen)?;
            let out = b.zeros(crate::DType::I32, &[seqs])?;
            let (c, o) = (counts.clone(), out.clone());
            let params = (name != "all greedy").then_some(params);
            Ok(Launch::new(move || b.sample(&Sample { logits: &logits, params: params.as_ref(), counts: Some(&c), out: &o }))
                .output("out", &out)
                .output("counts", &counts)
                .bytes(4 * seqs * vocab))
        });
        if vocab > 100_000 { case.perf_only() } else { case }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn noise_is_finite_at_both_ends() {
        assert!((-2.9..-2.8).contains(&gumbel(0)) && (16.6..16.7).contains(&gumbel(u32::MAX)));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|l: &f64| l.exp()).sum();
        let mut hits = [0u32; 4];
        let draws = 20_000;
        for position in 0..draws {
            hits[draw(&logits, &SampleParams { temperature: 1.0, seed: 7, position, ..SampleParams::GREEDY })] += 1;
        }
        for (hit, logit) in hits.into_iter().zip(logits) {
            let (got, want) = (f64::from(hit) / f64::from(draws), logit.exp() / total);
            // Four standard deviations of a binomial.
            assert!((got - want).abs() < 4.0 * (want * (1.0 - want) / f64::from(draws)).sqrt(), "{got} against {want}");
        }
    }
}
