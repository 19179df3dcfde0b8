//! Descriptors for the tensor memory accelerator, which copies boxes of a tensor (sm_90 and later).

use ferrum_kernels::Result;

use super::{DevicePtr, check, error, sys};

/// A descriptor as kernels take it, a member of their parameter struct. 128-byte aligned.
pub type TensorMap = sys::CUtensorMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorMapDType {
    U8,
    F16,
    BF16,
    F32,
    I32,
}

/// How rows of the box are spread over the banks of shared memory: the row is this many bytes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

/// A tensor of `R` axes, innermost first, and the box that one copy brings. Elements outside read as 0.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapSpec<const R: usize> {
    /// 16-byte aligned
    pub ptr: DevicePtr,
    pub dtype: TensorMapDType,
    /// Elements per axis, innermost first
    pub shape: [u64; R],
    /// Bytes from one index to the next of each axis, multiples of 16; the innermost is not looked at
    pub stride_bytes: [u64; R],
    /// Elements per axis, each at most 256
    pub box_shape: [u32; R],
    pub swizzle: Swizzle,
}

impl<const R: usize> TensorMapSpec<R> {
    /// # Errors
    /// When a size, a stride or an alignment is impossible.
    pub fn encode(&self) -> Result<TensorMap> {
        use sys::{CUtensorMapDataType as D, CUtensorMapSwizzle as S};
        let dtype = match self.dtype {
            TensorMapDType::U8 => D::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            TensorMapDType::F16 => D::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            TensorMapDType::BF16 => D::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            TensorMapDType::F32 => D::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            TensorMapDType::I32 => D::CU_TENSOR_MAP_DATA_TYPE_INT32,
        };
        let swizzle = match self.swizzle {
            Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::B32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::B64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::B128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut map = TensorMap { opaque: [0; 16] };
        let steps = [1u32; R];
        // SAFETY: every array has `R` elements (strides: `R − 1` are read); the driver computes in host memory only, and
        // the address is not followed here.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                R as u32,
                self.ptr as *mut _,
                self.shape.as_ptr(),
                self.stride_bytes.as_ptr().wrapping_add(1),
                self.box_shape.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", result).map_err(|e| error(format!("{e} for {self:?}"))).map(|()| map)
    }
}
