//! Every tensor type a GGUF file can name.

use ferrum_kernels::DType;

/// A tensor type of the GGUF format: its number in the file, its name, and how it packs elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub id: u32,
    pub name: &'static str,
    /// Elements per block; a row holds whole blocks.
    pub block_len: usize,
    pub block_bytes: usize,
    /// The same type as an operation knows it, if there is one.
    pub dtype: Option<DType>,
}

impl TensorType {
    /// The type with this number; `None` for numbers that the format has not given out.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|t| t.id == id).copied()
    }

    /// How a GGUF file stores `dtype`; `None` for a dtype that the format lacks.
    pub fn from_dtype(dtype: DType) -> Option<Self> {
        TYPES.iter().find(|t| t.dtype == Some(dtype)).copied()
    }

    /// Every type, by number.
    pub fn all() -> &'static [TensorType] {
        TYPES
    }

    /// Bytes of `elements`, or `None` when they are not whole blocks or the size overflows.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len) {
            return None;
        }
        (elements / self.block_len).checked_mul(self.block_bytes)
    }
}

/// A type that we compute with.
const fn known(id: u32, dtype: DType) -> TensorType {
    TensorType { id, name: dtype.name(), block_len: dtype.block_len(), block_bytes: dtype.block_bytes(), dtype: Some(dtype) }
}

/// A type that we can only list.
const fn listed(id: u32, name: &'static str, block_len: usize, block_bytes: usize) -> TensorType {
    TensorType { id, name, block_len, block_bytes, dtype: None }
}

/// Numbers and names: `enum ggml_type` of the ggml project's `ggml.h`; sizes: `ggml-common.h`. The numbers 4 and 5 were dropped
/// before version 2 of the format; 31 to 33 and 36 to 38 are interleaved forms that later versions make at load.
const TYPES: &[TensorType] = &[
    known(0, DType::F32),
    known(1, DType::F16),
    known(2, DType::Q4_0),
    known(3, DType::Q4_1),
    known(6, DType::Q5_0),
    known(7, DType::Q5_1),
    known(8, DType::Q8_0),
    listed(9, "Q8_1", 32, 36),
    known(10, DType::Q2_K),
    known(11, DType::Q3_K),
    known(12, DType::Q4_K),
    known(13, DType::Q5_K),
    known(14, DType::Q6_K),
    listed(15, "Q8_K", 256, 292),
    listed(16, "IQ2_XXS", 256, 66),
    listed(17, "IQ2_XS", 256, 74),
    listed(18, "IQ3_XXS", 256, 98),
    listed(19, "IQ1_S", 256, 50),
    known(20, DType::IQ4_NL),
    listed(21, "IQ3_S", 256, 110),
    listed(22, "IQ2_S", 256, 82),
    known(23, DType::IQ4_XS),
    listed(24, "I8", 1, 1),
    listed(25, "I16", 1, 2),
    known(26, DType::I32),
    listed(27, "I64", 1, 8),
    listed(28, "F64", 1, 8),
    listed(29, "IQ1_M", 256, 56),
    known(30, DType::BF16),
    listed(31, "Q4_0_4_4", 32, 18),
    listed(32, "Q4_0_4_8", 32, 18),
    listed(33, "Q4_0_8_8", 32, 18),
    listed(34, "TQ1_0", 256, 54),
    listed(35, "TQ2_0", 256, 66),
    listed(36, "IQ4_NL_4_4", 32, 18),
    listed(37, "IQ4_NL_4_8", 32, 18),
    listed(38, "IQ4_NL_8_8", 32, 18),
    listed(39, "MXFP4", 32, 17),
    listed(40, "NVFP4", 64, 36),
    listed(41, "Q1_0", 128, 18),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, a) in TYPES.iter().enumerate() {
            assert!(TYPES[..i].iter().all(|b| b.id < a.id && b.name != a.name), "{}", a.name);
        }
    }

    #[test]
    fn every_weight_dtype_can_be_stored() {
        for dtype in DType::weights() {
            let stored = TensorType::from_dtype(dtype).unwrap();
            assert_eq!((stored.name, stored.bytes(512)), (dtype.name(), dtype.bytes(512)));
        }
        assert_eq!(TensorType::from_dtype(DType::U8), None);
        assert_eq!(TensorType::from_id(4), None);
    }
}
