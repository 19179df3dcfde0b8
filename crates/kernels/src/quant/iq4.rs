//! 4-bit codes that index a table of 16 unevenly spaced values, denser around zero as weights are.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::fit;
use super::k_quants::signed_integer;
use super::legacy::{pack_nibbles, unpack_nibbles};
use crate::DType;

/// What the 16 codes of [`BlockIq4Nl`] and [`BlockIq4Xs`] stand for.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `x = d · IQ4_VALUES[q]`, 32 elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockIq4Nl {
    pub d: f16,
    /// Low half: elements 0..16. High half: elements 16..32.
    pub qs: [u8; 16],
}

/// `x = d · (s − 32) · IQ4_VALUES[q]`: 8 sub-blocks of 32 elements, each with a 6-bit scale `s`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockIq4Xs {
    pub d: f16,
    /// Upper two bits of the scales: sub-block `j` at bits `2j..2j + 2` of the little-endian u16.
    pub scales_h: u16,
    /// Lower four bits of the scales: sub-block `j` in byte `j / 2`, low half when `j` is even.
    pub scales_l: [u8; 4],
    /// 16 bytes per sub-block, each packed as in [`BlockIq4Nl`].
    pub qs: [u8; 128],
}

impl BlockIq4Xs {
    /// The integer scale of sub-block `j < 8`, −32..32.
    pub fn scale(&self, j: usize) -> i8 {
        let low = (self.scales_l[j / 2] >> (4 * (j % 2))) & 15;
        let high = ((self.scales_h >> (2 * j)) & 3) as u8;
        (low | high << 4) as i8 - 32
    }
}

impl Block<32> for BlockIq4Nl {
    const DTYPE: DType = DType::IQ4_NL;

    fn dequantize(&self, out: &mut [f32; 32]) {
        look_up(self.d.to_f32(), &self.qs, out);
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let d = fit::scale_to_f16(fit_scale(x));
        Self { d, qs: pack_nibbles(&nearest_codes(x, d.to_f32())) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block<256> for BlockIq4Xs {
    const DTYPE: DType = DType::IQ4_XS;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let sub_blocks = out.as_chunks_mut::<32>().0.iter_mut().zip(self.qs.as_chunks::<16>().0);
        for (j, (values, qs)) in sub_blocks.enumerate() {
            look_up(d * f32::from(self.scale(j)), qs, values);
        }
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let parts = x.as_chunks::<32>().0;
        let scales: [f32; 8] = std::array::from_fn(|j| fit_scale(&parts[j]));
        let d = fit::scale_to_f16(-fit::extreme(&scales) / 32.0);
        let mut block = Self { d, scales_h: 0, scales_l: [0; 4], qs: [0; 128] };
        for (j, (part, qs)) in parts.iter().zip(block.qs.as_chunks_mut::<16>().0).enumerate() {
            let scale = signed_integer(scales[j], d, 32.0);
            let bits = (scale + 32) as u8;
            block.scales_l[j / 2] |= (bits & 15) << (4 * (j % 2));
            block.scales_h |= u16::from(bits >> 4) << (2 * j);
            *qs = pack_nibbles(&nearest_codes(part, d.to_f32() * f32::from(scale)));
        }
        block
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

fn look_up(scale: f32, qs: &[u8; 16], out: &mut [f32; 32]) {
    for (x, q) in out.iter_mut().zip(unpack_nibbles(qs)) {
        *x = scale * f32::from(IQ4_VALUES[usize::from(q)]);
    }
}

/// Midpoints between neighbours of [`IQ4_VALUES`].
const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = (IQ4_VALUES[i] as f32 + IQ4_VALUES[i + 1] as f32) / 2.0;
        i += 1;
    }
    thresholds
};

/// The scale of `x ≈ scale · IQ4_VALUES[q]` with the least squared error, large values weighing most.
fn fit_scale(x: &[f32; 32]) -> f32 {
    let extreme = fit::extreme(x);
    if extreme.abs() < fit::NEGLIGIBLE {
        return 0.0;
    }
    let first = f32::from(IQ4_VALUES[0]);
    let w = fit::square_weights(x);
    fit::best_scale(extreme / first, (-7i8..=7).map(|t| (first + f32::from(t)) / extreme), |inverse| {
        let q = nearest_values(&fit::map(x, |x| x * inverse));
        let wq = fit::product(&w, &q);
        (fit::dot(&wq, x), fit::dot(&wq, &q))
    })
}

/// The nearest table values. Sums the steps passed, which vectorises where a search does not.
fn nearest_values(v: &[f32; 32]) -> [f32; 32] {
    let mut nearest = [f32::from(IQ4_VALUES[0]); 32];
    for (k, &threshold) in THRESHOLDS.iter().enumerate() {
        let step = f32::from(IQ4_VALUES[k + 1]) - f32::from(IQ4_VALUES[k]);
        for (nearest, v) in nearest.iter_mut().zip(v) {
            *nearest += if *v > threshold { step } else { 0.0 };
        }
    }
    nearest
}

/// The codes whose table values are nearest to `x / scale`.
fn nearest_codes(x: &[f32; 32], scale: f32) -> [u8; 32] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    x.map(|x| THRESHOLDS.iter().map(|t| u8::from(x * inverse > *t)).sum())
}
