//! The 256-element blocks with small integer scales per sub-block of 16 or 32 elements.
//!
//! `codes` gives the quants in element order and is the one place that knows where the bits lie; a sub-block is 16
//! (Q2_K, Q3_K, Q6_K) or 32 (Q4_K, Q5_K) consecutive elements.

mod bits;
mod encode;

use bytemuck::{Pod, Zeroable};
use half::f16;

use self::bits::*;
pub(super) use self::encode::signed_integer;
use self::encode::{affine as encode_affine, centred as encode_centred};
use super::Block;
use super::fit::{self, Ranges, Symmetric};
use crate::DType;

/// `x = d · s · q − dmin · m`, `q` in 0..4; `s`, `m` in 0..16 for each 16 elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ2K {
    /// Byte `j`, sub-block `j`: scale in the low half, minimum in the high half.
    pub scales: [u8; 16],
    /// Element `128h + 32s + l` (`s < 4`, `l < 32`): bits `2s..2s + 2` of byte `32h + l`.
    pub qs: [u8; 64],
    pub d: f16,
    pub dmin: f16,
}

/// `x = d · s · (q − 4)`, `q` in 0..8; `s` in −32..32 for each 16 elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ3K {
    /// Third bits. Element `32g + l` (`l < 32`): bit `g` of byte `l`.
    pub hmask: [u8; 32],
    /// Low two bits, placed as in [`BlockQ2K::qs`].
    pub qs: [u8; 64],
    /// `s + 32` in six bits. Low four: byte `j % 8`, low half when `j < 8`. Upper two: bits `2(j / 4)..` of byte `8 + j % 4`.
    pub scales: [u8; 12],
    pub d: f16,
}

/// `x = d · s · q − dmin · m`, `q` in 0..16; `s`, `m` in 0..64 for each 32 elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4K {
    pub d: f16,
    pub dmin: f16,
    /// Sub-block `j < 4`: `s` is the low six bits of byte `j`, `m` those of byte `j + 4`.
    /// Sub-block `j ≥ 4`: the low four bits of `s` and `m` are the low and high half of byte `j + 4`,
    /// their upper two bits are the top bits of bytes `j − 4` and `j`.
    pub scales: [u8; 12],
    /// Element `64c + 32s + l` (`s < 2`, `l < 32`): bits `4s..4s + 4` of byte `32c + l`.
    pub qs: [u8; 128],
}

/// `x = d · s · q − dmin · m`, `q` in 0..32; `s`, `m` in 0..64 for each 32 elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5K {
    pub d: f16,
    pub dmin: f16,
    /// As [`BlockQ4K::scales`].
    pub scales: [u8; 12],
    /// Fifth bits. Element `32g + l` (`l < 32`): bit `g` of byte `l`.
    pub qh: [u8; 32],
    /// Low four bits, placed as in [`BlockQ4K::qs`].
    pub qs: [u8; 128],
}

/// `x = d · s · (q − 32)`, `q` in 0..64; `s` in −128..128 for each 16 elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ6K {
    /// Low four bits. Element `128h + 32s + l` (`s < 4`, `l < 32`): byte `64h + 32(s % 2) + l`, high half when `s ≥ 2`.
    pub ql: [u8; 128],
    /// Upper two bits. Element `128h + 32s + l`: bits `2s..2s + 2` of byte `32h + l`.
    pub qh: [u8; 64],
    pub scales: [i8; 16],
    pub d: f16,
}

impl BlockQ2K {
    /// Scale and minimum of sub-block `j < 16`.
    pub fn scale_min(&self, j: usize) -> (u8, u8) {
        (self.scales[j] & 15, self.scales[j] >> 4)
    }

    /// Quants in element order, 0..4.
    pub fn codes(&self) -> [u8; 256] {
        unpack_2_bits(&self.qs)
    }
}

impl BlockQ3K {
    /// Scale of sub-block `j < 16`, −32..32.
    pub fn scale(&self, j: usize) -> i8 {
        unpack_scale(&self.scales, j) as i8 - 32
    }

    /// Quants in element order, 0..8.
    pub fn codes(&self) -> [u8; 256] {
        let mut codes = unpack_2_bits(&self.qs);
        or_bit_planes(&mut codes, &self.hmask, 2);
        codes
    }
}

impl BlockQ4K {
    /// Scale and minimum of sub-block `j < 8`.
    pub fn scale_min(&self, j: usize) -> (u8, u8) {
        unpack_scale_min(&self.scales, j)
    }

    /// Quants in element order, 0..16.
    pub fn codes(&self) -> [u8; 256] {
        unpack_4_bits(&self.qs)
    }
}

impl BlockQ5K {
    /// Scale and minimum of sub-block `j < 8`.
    pub fn scale_min(&self, j: usize) -> (u8, u8) {
        unpack_scale_min(&self.scales, j)
    }

    /// Quants in element order, 0..32.
    pub fn codes(&self) -> [u8; 256] {
        let mut codes = unpack_4_bits(&self.qs);
        or_bit_planes(&mut codes, &self.qh, 4);
        codes
    }
}

impl BlockQ6K {
    /// Quants in element order, 0..64.
    pub fn codes(&self) -> [u8; 256] {
        unpack_6_bits(&self.ql, &self.qh)
    }
}

impl Block<256> for BlockQ2K {
    const DTYPE: DType = DType::Q2_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        affine::<16>(&self.codes(), out, |j| {
            let (s, m) = self.scale_min(j);
            (d * f32::from(s), dmin * f32::from(m))
        });
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let search = Ranges { max_code: 3, from: -0.5, to: 1.0, steps: 15, negative_min: true };
        let b = encode_affine::<16, 16>(x, search, 15, |x| x.map(f32::abs));
        Self { scales: b.scale_mins.map(|(s, m)| s | m << 4), qs: pack_2_bits(&b.codes), d: b.d, dmin: b.dmin }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl Block<256> for BlockQ3K {
    const DTYPE: DType = DType::Q3_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        centred(&self.codes(), 4, out, |j| d * f32::from(self.scale(j)));
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let b = encode_centred(x, Symmetric { n: 4, spread: 0.9, steps: 9 }, 32);
        let scales = pack_scales(&b.scales.map(|s| (s + 32) as u8));
        Self { hmask: pack_bit_planes(&b.codes, 2), qs: pack_2_bits(&b.codes), scales, d: b.d }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block<256> for BlockQ4K {
    const DTYPE: DType = DType::Q4_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        affine::<32>(&self.codes(), out, |j| {
            let (s, m) = self.scale_min(j);
            (d * f32::from(s), dmin * f32::from(m))
        });
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let search = Ranges { max_code: 15, from: -1.0, to: 1.0, steps: 20, negative_min: true };
        let b = encode_affine::<32, 8>(x, search, 63, fit::mixed_weights);
        Self { d: b.d, dmin: b.dmin, scales: pack_scale_mins(&b.scale_mins), qs: pack_4_bits(&b.codes) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl Block<256> for BlockQ5K {
    const DTYPE: DType = DType::Q5_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        affine::<32>(&self.codes(), out, |j| {
            let (s, m) = self.scale_min(j);
            (d * f32::from(s), dmin * f32::from(m))
        });
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let search = Ranges { max_code: 31, from: -0.5, to: 1.0, steps: 15, negative_min: true };
        let b = encode_affine::<32, 8>(x, search, 63, fit::mixed_weights);
        let (scales, qh) = (pack_scale_mins(&b.scale_mins), pack_bit_planes(&b.codes, 4));
        Self { d: b.d, dmin: b.dmin, scales, qh, qs: pack_4_bits(&b.codes) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl Block<256> for BlockQ6K {
    const DTYPE: DType = DType::Q6_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        centred(&self.codes(), 32, out, |j| d * f32::from(self.scales[j]));
    }

    fn quantize(x: &[f32; 256]) -> Self {
        let b = encode_centred(x, Symmetric { n: 32, spread: 0.9, steps: 9 }, 128);
        let (ql, qh) = pack_6_bits(&b.codes);
        Self { ql, qh, scales: b.scales, d: b.d }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

/// `out = scale · code − min`, with `(scale, min)` per sub-block of `S` elements.
fn affine<const S: usize>(codes: &[u8; 256], out: &mut [f32; 256], scale_min: impl Fn(usize) -> (f32, f32)) {
    let sub_blocks = out.as_chunks_mut::<S>().0.iter_mut().zip(codes.as_chunks::<S>().0);
    for (j, (values, codes)) in sub_blocks.enumerate() {
        let (scale, min) = scale_min(j);
        for (x, &q) in values.iter_mut().zip(codes) {
            *x = scale * f32::from(q) - min;
        }
    }
}

/// `out = scale · (code − centre)`, with `scale` per sub-block of 16 elements.
fn centred(codes: &[u8; 256], centre: i8, out: &mut [f32; 256], scale: impl Fn(usize) -> f32) {
    let sub_blocks = out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0);
    for (j, (values, codes)) in sub_blocks.enumerate() {
        let scale = scale(j);
        for (x, &q) in values.iter_mut().zip(codes) {
            *x = scale * f32::from(q as i8 - centre);
        }
    }
}
