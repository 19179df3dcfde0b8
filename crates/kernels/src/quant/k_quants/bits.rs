//! Where the bits of the K-quants lie: each `unpack` with its inverse.

/// Four elements a byte: element `128h + 32s + l` is bits `2s..2s + 2` of byte `32h + l`.
pub(super) fn unpack_2_bits(bytes: &[u8; 64]) -> [u8; 256] {
    std::array::from_fn(|i| (bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3)
}

/// Takes the low two bits of each code.
pub(super) fn pack_2_bits(codes: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|byte| (0..4).fold(0, |packed, s| packed | (codes[128 * (byte / 32) + 32 * s + byte % 32] & 3) << (2 * s)))
}

/// Two elements a byte: element `64c + 32s + l` is bits `4s..4s + 4` of byte `32c + l`.
pub(super) fn unpack_4_bits(bytes: &[u8; 128]) -> [u8; 256] {
    std::array::from_fn(|i| (bytes[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15)
}

/// Takes the low four bits of each code.
pub(super) fn pack_4_bits(codes: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|byte| {
        let low = 64 * (byte / 32) + byte % 32;
        (codes[low] & 15) | codes[low + 32] << 4
    })
}

/// Sets bit `at` of element `32g + l` to bit `g` of `planes[l]`.
pub(super) fn or_bit_planes(codes: &mut [u8; 256], planes: &[u8; 32], at: u32) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((planes[i % 32] >> (i / 32)) & 1) << at;
    }
}

/// Collects bit `at` of each code.
pub(super) fn pack_bit_planes(codes: &[u8; 256], at: u32) -> [u8; 32] {
    std::array::from_fn(|l| (0..8).fold(0, |plane, g| plane | ((codes[32 * g + l] >> at) & 1) << g))
}

/// The six bits of Q6_K: element `128h + 32s + l` has its low four in byte `64h + 32(s % 2) + l` of `low` (high half when
/// `s ≥ 2`) and its upper two in `high`, placed as by [`unpack_2_bits`].
pub(super) fn unpack_6_bits(low: &[u8; 128], high: &[u8; 64]) -> [u8; 256] {
    let high = unpack_2_bits(high);
    std::array::from_fn(|i| {
        let (h, s, l) = (i / 128, i / 32 % 4, i % 32);
        high[i] << 4 | (low[64 * h + 32 * (s % 2) + l] >> (4 * (s / 2))) & 15
    })
}

/// `(low, high)` of [`unpack_6_bits`].
pub(super) fn pack_6_bits(codes: &[u8; 256]) -> ([u8; 128], [u8; 64]) {
    let low = std::array::from_fn(|byte| {
        let first = 128 * (byte / 64) + byte % 64;
        (codes[first] & 15) | codes[first + 64] << 4
    });
    (low, pack_2_bits(&codes.map(|code| code >> 4)))
}

/// The six-bit scale of sub-block `j` of Q3_K; see [`super::BlockQ3K::scales`].
pub(super) fn unpack_scale(bytes: &[u8; 12], j: usize) -> u8 {
    let low = (bytes[j % 8] >> (4 * (j / 8))) & 15;
    let high = (bytes[8 + j % 4] >> (2 * (j / 4))) & 3;
    low | high << 4
}

pub(super) fn pack_scales(scales: &[u8; 16]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (j, &scale) in scales.iter().enumerate() {
        bytes[j % 8] |= (scale & 15) << (4 * (j / 8));
        bytes[8 + j % 4] |= (scale >> 4) << (2 * (j / 4));
    }
    bytes
}

/// The six-bit scale and minimum of sub-block `j` of Q4_K and Q5_K; see [`super::BlockQ4K::scales`].
pub(super) fn unpack_scale_min(bytes: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        ((bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4, (bytes[j + 4] >> 4) | (bytes[j] >> 6) << 4)
    }
}

pub(super) fn pack_scale_mins(scale_mins: &[(u8, u8); 8]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for j in 0..4 {
        let ((s, m), (s4, m4)) = (scale_mins[j], scale_mins[j + 4]);
        bytes[j] = s | (s4 >> 4) << 6;
        bytes[j + 4] = m | (m4 >> 4) << 6;
        bytes[j + 8] = (s4 & 15) | (m4 & 15) << 4;
    }
    bytes
}
