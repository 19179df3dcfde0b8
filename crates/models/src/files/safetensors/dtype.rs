//! Every dtype a safetensors file can name.

use ferrum_kernels::DType;

/// A dtype of the format.
#[derive(Clone, Copy)]
pub(super) struct StoredType {
    pub(super) name: &'static str,
    bits: usize,
    /// The same type as an operation knows it, if there is one.
    pub(super) dtype: Option<DType>,
}

impl StoredType {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|t| t.name == name).copied()
    }

    /// Bytes of a tensor of this shape, or `None` when they overflow or are not whole bytes.
    pub(super) fn bytes(self, shape: &[usize]) -> Option<usize> {
        let bits = shape.iter().try_fold(self.bits, |n, &d| n.checked_mul(d))?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

const fn known(name: &'static str, dtype: DType) -> StoredType {
    StoredType { name, bits: dtype.block_bytes() * 8, dtype: Some(dtype) }
}

const fn listed(name: &'static str, bits: usize) -> StoredType {
    StoredType { name, bits, dtype: None }
}

const TYPES: &[StoredType] = &[
    known("F32", DType::F32),
    known("F16", DType::F16),
    known("BF16", DType::BF16),
    known("I32", DType::I32),
    known("U8", DType::U8),
    listed("BOOL", 8),
    listed("I8", 8),
    listed("I16", 16),
    listed("U16", 16),
    listed("U32", 32),
    listed("I64", 64),
    listed("U64", 64),
    listed("F64", 64),
    listed("C64", 64),
    listed("F8_E4M3", 8),
    listed("F8_E5M2", 8),
    listed("F8_E8M0", 8),
    listed("F8_E4M3FNUZ", 8),
    listed("F8_E5M2FNUZ", 8),
    listed("F6_E2M3", 6),
    listed("F6_E3M2", 6),
    listed("F4", 4),
];
