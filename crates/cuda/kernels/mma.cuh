// Warp-level building blocks that every architecture from sm_80 on has: asynchronous copies into shared memory,
// `ldmatrix`, `mma.sync` m16n8k16 and what a softmax needs.
#pragma once

#include "common.cuh"

__device__ __forceinline__ uint32_t smem_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// 16 bytes from global to shared memory, past L1. Writes zeros and reads nothing where `valid` is false.
__device__ __forceinline__ void cp_async_16(uint32_t smem, const void* global, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(bytes));
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `Pending` of this thread's newest groups are unfinished.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane `8i + r` gives the address of row `r` of matrix `i`.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
}

// `c[16, 8] += a[16, 16] · b[16, 8]`. With g = lane / 4 and q = lane % 4, a lane holds
// c: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1); a: rows g and g + 8 at columns 2q.. and 2q + 8..;
// b: rows 2q.. and 2q + 8.. of column g.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as 16-bit elements, `low` in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
}

template <>
__device__ __forceinline__ uint32_t pack2<f16>(float low, float high) {
    const __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
}

// Two BF16 activations as elements of the cache's dtype.
template <typename T>
__device__ __forceinline__ uint32_t from_bf16x2(uint32_t v) {
    const float2 f = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v));
    return pack2<T>(f.x, f.y);
}

template <>
__device__ __forceinline__ uint32_t from_bf16x2<bf16>(uint32_t v) { return v; }

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh to a relative 1e-6 away from 0 and an absolute 1e-7 near it; `tanh.approx` is off by 5e-4, which a soft cap of 50
// turns into 0.025 on a score.
__device__ __forceinline__ float tanh_accurate(float x) {
    return 1.0f - __fdividef(2.0f, exp2_approx(x * 2.885390082f) + 1.0f);
}

// The largest, or the sum, over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(FULL, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL, v, 2));
}

__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(FULL, v, 1);
    return v + __shfl_xor_sync(FULL, v, 2);
}

// a / b for 0 <= a < 2^24 and 0 < b: a third of the time of the compiler's division of integers.
__device__ __forceinline__ int quick_divide(int a, int b) {
    const int q = static_cast<int>(__fdividef(static_cast<float>(a), static_cast<float>(b)));
    const int rest = a - q * b;
    return q + (rest >= b) - (rest < 0);
}

__device__ __forceinline__ int quick_divide_up(int a, int b) { return quick_divide(a + b - 1, b); }

__device__ __forceinline__ int warp_add(int v) { return __reduce_add_sync(FULL, v); }
__device__ __forceinline__ int warp_largest(int v) { return __reduce_max_sync(FULL, v); }
__device__ __forceinline__ unsigned warp_least(unsigned v) { return __reduce_min_sync(FULL, v); }

// Counts an arrival and returns how many came before; the count goes back to 0 after `last`. What the block wrote before
// its barrier is visible to whoever arrives later, and what earlier arrivals wrote is visible to the block after its next.
__device__ __forceinline__ unsigned arrive(unsigned* count, unsigned last) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(count), "r"(last) : "memory");
    return before;
}
