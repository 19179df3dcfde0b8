//! Element types: plain numbers and the GGML block types, which are ordinary dtypes here.

use std::fmt;

/// How the elements of a tensor are stored.
///
/// Block types pack `block_len` consecutive elements of a row into `block_bytes` bytes; their byte layouts are those of
/// the GGUF format (`docs/gguf.md` and `ggml-common.h` of the ggml project describe them). A row always holds a whole
/// number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum DType {
    F32,
    F16,
    BF16,
    I32,
    U8,
    /// 32 × 4 bit, one f16 scale: `x = d · (q − 8)`.
    Q4_0,
    /// 32 × 4 bit, f16 scale and minimum: `x = d · q + m`.
    Q4_1,
    /// 32 × 5 bit, one f16 scale: `x = d · (q − 16)`.
    Q5_0,
    /// 32 × 5 bit, f16 scale and minimum: `x = d · q + m`.
    Q5_1,
    /// 32 × 8 bit, one f16 scale: `x = d · q`.
    Q8_0,
    /// 256 × 2 bit, 16 sub-blocks with 4-bit scales and minimums.
    Q2_K,
    /// 256 × 3 bit, 16 sub-blocks with 6-bit scales.
    Q3_K,
    /// 256 × 4 bit, 8 sub-blocks with 6-bit scales and minimums.
    Q4_K,
    /// 256 × 5 bit, 8 sub-blocks with 6-bit scales and minimums.
    Q5_K,
    /// 256 × 6 bit, 16 sub-blocks with 8-bit scales.
    Q6_K,
    /// 32 × 4 bit looked up in a table of 16 values, one f16 scale.
    IQ4_NL,
    /// 256 × 4 bit looked up in the table of `IQ4_NL`, 8 sub-blocks with 6-bit scales.
    IQ4_XS,
}

impl DType {
    /// Every dtype, in declaration order.
    pub const ALL: [DType; 17] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I32,
        DType::U8,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
    ];

    /// The dtypes a weight matrix can have: floats and block types.
    pub fn weights() -> impl Iterator<Item = DType> {
        Self::ALL.into_iter().filter(|d| !matches!(d, DType::I32 | DType::U8))
    }

    /// Elements per block; 1 for plain numbers.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::U8 => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::IQ4_NL => 32,
            DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K | DType::IQ4_XS => 256,
        }
    }

    /// Bytes per block; the element size for plain numbers.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
            DType::Q4_0 | DType::IQ4_NL => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q8_0 => 34,
            DType::Q2_K => 84,
            DType::Q3_K => 110,
            DType::Q4_K => 144,
            DType::Q5_K => 176,
            DType::Q6_K => 210,
            DType::IQ4_XS => 136,
        }
    }

    /// Whether this is a packed block type.
    pub const fn is_block(self) -> bool {
        self.block_len() > 1
    }

    /// Whether this is F32, F16 or BF16.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Bytes of `elements` consecutive elements, or `None` when they are not whole blocks or the size overflows.
    pub const fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Stored bits per element, scales included.
    pub fn bits_per_element(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// The name users type and read, e.g. `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I32 => "I32",
            DType::U8 => "U8",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q8_0 => "Q8_0",
            DType::Q2_K => "Q2_K",
            DType::Q3_K => "Q3_K",
            DType::Q4_K => "Q4_K",
            DType::Q5_K => "Q5_K",
            DType::Q6_K => "Q6_K",
            DType::IQ4_NL => "IQ4_NL",
            DType::IQ4_XS => "IQ4_XS",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
