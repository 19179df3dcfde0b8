// What every kernel shares: element types, 16-byte packs, reductions, programmatic dependent launch.
//
// Conventions:
// - One parameter per kernel, a struct by value, mirrored by a #[repr(C)] struct of the same name in the launcher.
// - Sizes and strides count elements.
// - Every kernel calls pdl_wait() in every thread, before it reads anything that an earlier kernel wrote and before it
//   writes anything; only weights and what an upload brought may be read earlier. Leaving a kernel without it would let
//   the kernel after it start before the one in front has finished.
// - pdl_launch() early on lets the next kernel's prologue overlap this one; the next kernel's own wait keeps it correct.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffffu;

// Waits until the kernels in front have finished and their writes are visible.
__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel behind start as soon as there is room.
__device__ __forceinline__ void pdl_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }

template <class T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) { return __float2half_rn(x); }

// 16 bytes of elements: one load or store per thread.
template <class T> struct alignas(16) Pack {
    static constexpr int N = 16 / sizeof(T);
    T v[N];
};

template <class T> __device__ __forceinline__ Pack<T> load_pack(const T* p) { return *reinterpret_cast<const Pack<T>*>(p); }
template <class T> __device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) { *reinterpret_cast<Pack<T>*>(p) = pack; }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, offset));
    return x;
}

// The sum over all threads of the block, in every thread. `scratch` has room for 32 floats and is free again after the
// next barrier. The block is whole warps.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    const int warps = blockDim.x / WARP;
    if (warps == 1) return x;
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < warps ? scratch[threadIdx.x % WARP] : 0.0f;
    return warp_sum(x);
}

// Defines the kernels `name_f32`, `name_f16` and `name_bf16` of at most `threads` threads per block, which call
// `name<T>(p)` of parameter type `Params`.
#define FOR_EACH_FLOAT(name, Params, threads)                                                                     \
    extern "C" __global__ void __launch_bounds__(threads) name##_f32(const __grid_constant__ Params p) { name<float>(p); } \
    extern "C" __global__ void __launch_bounds__(threads) name##_f16(const __grid_constant__ Params p) { name<f16>(p); }   \
    extern "C" __global__ void __launch_bounds__(threads) name##_bf16(const __grid_constant__ Params p) { name<bf16>(p); }
