//! Random bits of many tokens at once, and how large the noise made of them can be.

use std::sync::LazyLock;

use ferrum_kernels::ops::gumbel;

use super::CHUNK;
use crate::ops::simd::Vector;

/// No noise is above this.
pub(super) const MAX_NOISE: f64 = 16.7;

/// The most that noise can be, by the upper eight of its random bits, rounding included.
pub(super) static NOISE_BOUNDS: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|upper| gumbel((upper as u32) << 24 | 0xFF_FFFF) + 1e-4));

/// The first word of [`ferrum_kernels::ops::philox`] for the tokens `first..first + CHUNK`.
#[inline(always)]
pub(super) unsafe fn philox_chunk<V: Vector>(seed: u64, position: u32, first: u32, out: &mut [u32; CHUNK]) {
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let start = first.wrapping_add(16 * part as u32);
        let mut c0: [u32; 16] = std::array::from_fn(|i| start.wrapping_add(i as u32));
        let (mut c1, mut c2, mut c3) = ([position; 16], [0; 16], [0; 16]);
        let (mut k0, mut k1) = (seed as u32, (seed >> 32) as u32);
        for _ in 0..10 {
            for i in 0..16 {
                let (p0, p1) = (u64::from(c0[i]) * 0xD251_1F53, u64::from(c2[i]) * 0xCD9E_8D57);
                c0[i] = (p1 >> 32) as u32 ^ c1[i] ^ k0;
                c2[i] = (p0 >> 32) as u32 ^ c3[i] ^ k1;
                (c1[i], c3[i]) = (p1 as u32, p0 as u32);
            }
            (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
        }
        out.copy_from_slice(&c0);
    }
}

#[cfg(test)]
mod tests {
    use ferrum_kernels::ops::{philox, token_noise};

    use super::*;
    use crate::{Simd, ops::simd::at_level};

    #[test]
    fn chunks_are_philox_and_bounds_bound() {
        for level in Simd::ALL.into_iter().filter(|l| l.is_available()) {
            let (seed, position, first, mut bits) = (0xDEAD_BEEF_1234_5678, 9, 262_100, [0; CHUNK]);
            let out = &mut bits;
            // SAFETY: the level is available.
            unsafe { at_level!(level, philox_chunk(seed: u64, position: u32, first: u32, out: &mut [u32; CHUNK])) };
            for (token, bits) in (first..).zip(bits) {
                assert_eq!(bits, philox([token, position, 0, 0], [seed as u32, (seed >> 32) as u32])[0], "{level}");
                assert!(token_noise(seed, position, token) <= NOISE_BOUNDS[(bits >> 24) as usize]);
            }
        }
        assert!(f64::from(gumbel(u32::MAX)) < MAX_NOISE && gumbel(0).is_finite());
    }
}
