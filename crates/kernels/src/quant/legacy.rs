//! The 32-element blocks with one f16 scale, and with or without an f16 minimum.
//!
//! In the 4- and 5-bit types, byte `i` of `qs` holds the low nibble of element `i` in its low half and that of element
//! `i + 16` in its high half. In the 5-bit types, bit `i` of the little-endian u32 in `qh` is the fifth bit of element `i`.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::fit::{self, Ranges, Symmetric};
use crate::DType;

/// `x = d · (q − 8)`, `q` in 0..16.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_0 {
    pub d: f16,
    /// Low half: elements 0..16. High half: elements 16..32.
    pub qs: [u8; 16],
}

/// `x = d · q + m`, `q` in 0..16.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ4_1 {
    pub d: f16,
    pub m: f16,
    /// Low half: elements 0..16. High half: elements 16..32.
    pub qs: [u8; 16],
}

/// `x = d · (q − 16)`, `q` in 0..32.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5_0 {
    pub d: f16,
    /// Fifth bits: bit `i` of the little-endian u32 belongs to element `i`.
    pub qh: [u8; 4],
    /// Low half: elements 0..16. High half: elements 16..32.
    pub qs: [u8; 16],
}

/// `x = d · q + m`, `q` in 0..32.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ5_1 {
    pub d: f16,
    pub m: f16,
    /// Fifth bits: bit `i` of the little-endian u32 belongs to element `i`.
    pub qh: [u8; 4],
    /// Low half: elements 0..16. High half: elements 16..32.
    pub qs: [u8; 16],
}

/// `x = d · q`, `q` in −128..128.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BlockQ8_0 {
    pub d: f16,
    pub qs: [i8; 32],
}

impl Block<32> for BlockQ4_0 {
    const DTYPE: DType = DType::Q4_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (x, q) in out.iter_mut().zip(unpack_nibbles(&self.qs)) {
            *x = f32::from(q as i8 - 8) * d;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, codes) = centred(x, 8);
        Self { d, qs: pack_nibbles(&codes) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block<32> for BlockQ4_1 {
    const DTYPE: DType = DType::Q4_1;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (x, q) in out.iter_mut().zip(unpack_nibbles(&self.qs)) {
            *x = f32::from(q) * d + m;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, m, codes) = affine(x, 15);
        Self { d, m, qs: pack_nibbles(&codes) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

impl Block<32> for BlockQ5_0 {
    const DTYPE: DType = DType::Q5_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (x, q) in out.iter_mut().zip(unpack_5_bits(&self.qs, self.qh)) {
            *x = f32::from(q as i8 - 16) * d;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, codes) = centred(x, 16);
        Self { d, qh: pack_fifth_bits(&codes), qs: pack_nibbles(&codes) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block<32> for BlockQ5_1 {
    const DTYPE: DType = DType::Q5_1;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (x, q) in out.iter_mut().zip(unpack_5_bits(&self.qs, self.qh)) {
            *x = f32::from(q) * d + m;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let (d, m, codes) = affine(x, 31);
        Self { d, m, qh: pack_fifth_bits(&codes), qs: pack_nibbles(&codes) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

impl Block<32> for BlockQ8_0 {
    const DTYPE: DType = DType::Q8_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (x, &q) in out.iter_mut().zip(&self.qs) {
            *x = f32::from(q) * d;
        }
    }

    fn quantize(x: &[f32; 32]) -> Self {
        let d = fit::scale_to_f16(fit::extreme(x).abs() / 127.0);
        let inverse = if d == f16::ZERO { 0.0 } else { 1.0 / d.to_f32() };
        Self { d, qs: x.map(|x| fit::low_byte(fit::clamp(x * inverse, -127.0, 127.0)) as i8) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

/// Scale and codes of `x ≈ d · (code − n)`. The largest magnitude goes to code 0, which reaches further than `2n − 1`.
fn centred(x: &[f32; 32], n: u8) -> (f16, [u8; 32]) {
    let d = fit::scale_to_f16(fit::symmetric(x, &[1.0; 32], Symmetric { n, spread: 0.0, steps: 0 }));
    (d, fit::codes(x, d.to_f32(), 0.0, n, 2 * n - 1))
}

/// Scale, minimum and codes of `x ≈ d · code + m`.
fn affine(x: &[f32; 32], max_code: u8) -> (f16, f16, [u8; 32]) {
    let search = Ranges { max_code, from: -0.6, to: 0.6, steps: 2, negative_min: false };
    let fit = fit::affine(x, &[1.0; 32], search);
    let (d, m) = (fit::scale_to_f16(fit.scale), f16::from_f32(fit.min));
    (d, m, fit::codes(x, d.to_f32(), m.to_f32(), 0, max_code))
}

/// Nibbles in element order: low halves first, then high halves.
pub(super) fn unpack_nibbles(qs: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 })
}

fn unpack_5_bits(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let high = u32::from_le_bytes(qh);
    let low = unpack_nibbles(qs);
    std::array::from_fn(|i| low[i] | (((high >> i) & 1) as u8) << 4)
}

/// Takes the low four bits of each code.
pub(super) fn pack_nibbles(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (codes[i] & 15) | codes[i + 16] << 4)
}

fn pack_fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    codes.iter().enumerate().fold(0u32, |bits, (i, &code)| bits | u32::from(code >> 4) << i).to_le_bytes()
}
