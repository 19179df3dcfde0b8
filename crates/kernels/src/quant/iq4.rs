//! 4-bit codes that index a table of 16 unevenly spaced values, denser around zero as weights are.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Block;
use super::legacy::unpack_nibbles;
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
}

fn look_up(scale: f32, qs: &[u8; 16], out: &mut [f32; 32]) {
    for (x, q) in out.iter_mut().zip(unpack_nibbles(qs)) {
        *x = scale * f32::from(IQ4_VALUES[usize::from(q)]);
    }
}
