//! The 256-element blocks with small integer scales per sub-block of 16 or 32 elements.
//!
//! `codes` gives the quants in element order and is the one place that knows where the bits lie; a sub-block is 16
//! (Q2_K, Q3_K, Q6_K) or 32 (Q4_K, Q5_K) consecutive elements.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
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
        let low = (self.scales[j % 8] >> (4 * (j / 8))) & 15;
        let high = (self.scales[8 + j % 4] >> (2 * (j / 4))) & 3;
        (low | high << 4) as i8 - 32
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
        let mut codes = unpack_2_bits(&self.qh);
        let quarters = codes.as_chunks_mut::<32>().0.iter_mut().enumerate();
        for (g, quarter) in quarters {
            let (h, s) = (g / 4, g % 4);
            let low = &self.ql[64 * h + 32 * (s % 2)..][..32];
            for (code, byte) in quarter.iter_mut().zip(low) {
                *code = *code << 4 | (byte >> (4 * (s / 2))) & 15;
            }
        }
        codes
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
}

impl Block<256> for BlockQ3K {
    const DTYPE: DType = DType::Q3_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        centred(&self.codes(), 4, out, |j| d * f32::from(self.scale(j)));
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
}

impl Block<256> for BlockQ6K {
    const DTYPE: DType = DType::Q6_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        centred(&self.codes(), 32, out, |j| d * f32::from(self.scales[j]));
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

/// Four elements a byte: element `128h + 32s + l` is bits `2s..2s + 2` of byte `32h + l`.
fn unpack_2_bits(bytes: &[u8; 64]) -> [u8; 256] {
    std::array::from_fn(|i| (bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3)
}

/// Two elements a byte: element `64c + 32s + l` is bits `4s..4s + 4` of byte `32c + l`.
fn unpack_4_bits(bytes: &[u8; 128]) -> [u8; 256] {
    std::array::from_fn(|i| (bytes[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15)
}

/// Sets bit `at` of element `32g + l` to bit `g` of `planes[l]`.
fn or_bit_planes(codes: &mut [u8; 256], planes: &[u8; 32], at: u32) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((planes[i % 32] >> (i / 32)) & 1) << at;
    }
}

/// Eight scales and eight minimums of six bits in twelve bytes; see [`BlockQ4K::scales`].
fn unpack_scale_min(bytes: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        ((bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4, (bytes[j + 4] >> 4) | (bytes[j] >> 6) << 4)
    }
}
