// Hopper's own instructions: mbarriers, the tensor copy engine, warpgroup matrix products. sm_90a only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace sm90 {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- mbarriers -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint64_t* bar, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals));
}

__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint64_t* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

// Arrives and announces `bytes` that the copy engine will bring before the phase may end.
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}

// Waits until the phase of parity `parity` has ended.
__device__ __forceinline__ void barrier_wait(uint64_t* bar, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni DONE;\n"
        "bra.uni WAIT;\n"
        "DONE:\n"
        "}\n" ::"r"(shared_address(bar)),
        "r"(parity)
        : "memory");
}

// Hardware barrier `id` (0 is __syncthreads) among `threads` threads.
__device__ __forceinline__ void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- tensor copy engine --------------------------------------------------------------------------------------------

__device__ __forceinline__ void tma_load(void* dst, const void* map, uint64_t* bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(dst)),
                 "l"(map), "r"(x), "r"(y), "r"(shared_address(bar))
                 : "memory");
}

__device__ __forceinline__ void tma_load(void* dst, const void* map, uint64_t* bar, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
                     shared_address(dst)),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(bar))
                 : "memory");
}

__device__ __forceinline__ void tma_prefetch_map(const void* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Orders this thread's ordinary writes to shared memory before what the tensor cores and the copy engine do next.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- warpgroup matrix products -------------------------------------------------------------------------------------

template <int REGISTERS>
__device__ __forceinline__ void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Descriptor of a tile in rows of 128 bytes with the 128-byte swizzle. `lead_bytes` is the distance between blocks of
// 64 columns (read only where the columns are the M or N axis), groups of 8 rows follow one another.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address, uint32_t lead_bytes) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(lead_bytes >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// The tile `bytes` further on.
__device__ __forceinline__ uint64_t tile_at(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

__device__ __forceinline__ void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void mma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving accesses to accumulators across this point.
template <int COUNT>
__device__ __forceinline__ void pin(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define ACC_8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ACC_16(d, i) ACC_8(d, i), ACC_8(d, i + 8)
#define ACC_32(d, i) ACC_16(d, i), ACC_16(d, i + 16)
#define ACC_64(d, i) ACC_32(d, i), ACC_32(d, i + 32)
#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define REGS_16 TEN() ",%10,%11,%12,%13,%14,%15"
#define REGS_24 TEN() "," TEN(1) ",%20,%21,%22,%23"
#define REGS_32 TEN() "," TEN(1) "," TEN(2) ",%30,%31"
#define REGS_40 TEN() "," TEN(1) "," TEN(2) "," TEN(3)
#define REGS_48 REGS_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define REGS_56 REGS_40 "," TEN(4) ",%50,%51,%52,%53,%54,%55"
#define REGS_64 REGS_40 "," TEN(4) "," TEN(5) ",%60,%61,%62,%63"
#define REGS_80 REGS_40 "," TEN(4) "," TEN(5) "," TEN(6) "," TEN(7)
#define REGS_96 REGS_80 "," TEN(8) ",%90,%91,%92,%93,%94,%95"
#define REGS_112 REGS_80 "," TEN(8) "," TEN(9) "," TEN(10) ",%110,%111"
#define REGS_128 REGS_80 "," TEN(8) "," TEN(9) "," TEN(10) "," TEN(11) ",%120,%121,%122,%123,%124,%125,%126,%127"

// d[64, N] (+)= a[64, 16] · b[N, 16]ᵀ, both from shared memory, both with k contiguous
#define MMA_SHARED(N, TYPE, REGS, A, B, P, ...)                                                                       \
    static __device__ __forceinline__ void mma(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {           \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P ", 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGS "}, %" #A ", %" #B     \
                     ", p, 1, 1, 0, 0;}\n"                                                                            \
                     : __VA_ARGS__                                                                                    \
                     : "l"(a), "l"(b), "r"(accumulate));                                                              \
    }
// d[64, N] (+)= a[64, 16] · b[16, N], a from registers, b from shared memory with n contiguous
#define MMA_REGISTERS(N, TYPE, REGS, A0, A1, A2, A3, B, P, ...)                                                          \
    static __device__ __forceinline__ void mma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) { \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P ", 0;\n"                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGS "}, {%" #A0 ",%" #A1    \
                     ",%" #A2 ",%" #A3 "}, %" #B ", p, 1, 1, 1;}\n"                                                     \
                     : __VA_ARGS__                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                            \
    }

// Thread t of the warpgroup holds rows 16·(t/32) + t%32/4 (+8) and columns 8·j + 2·(t%4) (+1): d[4j], d[4j+1] in the first
// row, d[4j+2], d[4j+3] in the second.
#define MMA_SHAPES(TYPE)                                                                                              \
    MMA_SHARED(32, TYPE, REGS_16, 16, 17, 18, ACC_16(d, 0))                                                           \
    MMA_SHARED(48, TYPE, REGS_24, 24, 25, 26, ACC_16(d, 0), ACC_8(d, 16))                                             \
    MMA_SHARED(64, TYPE, REGS_32, 32, 33, 34, ACC_32(d, 0))                                                           \
    MMA_SHARED(80, TYPE, REGS_40, 40, 41, 42, ACC_32(d, 0), ACC_8(d, 32))                                             \
    MMA_SHARED(96, TYPE, REGS_48, 48, 49, 50, ACC_32(d, 0), ACC_16(d, 32))                                            \
    MMA_SHARED(112, TYPE, REGS_56, 56, 57, 58, ACC_32(d, 0), ACC_16(d, 32), ACC_8(d, 48))                             \
    MMA_SHARED(128, TYPE, REGS_64, 64, 65, 66, ACC_64(d, 0))                                                          \
    MMA_SHARED(192, TYPE, REGS_96, 96, 97, 98, ACC_64(d, 0), ACC_32(d, 64))                                           \
    MMA_SHARED(224, TYPE, REGS_112, 112, 113, 114, ACC_64(d, 0), ACC_32(d, 64), ACC_16(d, 96))                        \
    MMA_SHARED(256, TYPE, REGS_128, 128, 129, 130, ACC_64(d, 0), ACC_64(d, 64))                                       \
    MMA_REGISTERS(64, TYPE, REGS_32, 32, 33, 34, 35, 36, 37, ACC_32(d, 0))                                            \
    MMA_REGISTERS(80, TYPE, REGS_40, 40, 41, 42, 43, 44, 45, ACC_32(d, 0), ACC_8(d, 32))                              \
    MMA_REGISTERS(96, TYPE, REGS_48, 48, 49, 50, 51, 52, 53, ACC_32(d, 0), ACC_16(d, 32))                             \
    MMA_REGISTERS(128, TYPE, REGS_64, 64, 65, 66, 67, 68, 69, ACC_64(d, 0))

// Warpgroup products of one element type; the accumulator's size chooses N.
template <class T>
struct Mma;
template <>
struct Mma<__nv_bfloat16> {
    MMA_SHAPES("bf16")
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        uint32_t r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
};
template <>
struct Mma<__half> {
    MMA_SHAPES("f16")
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        uint32_t r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
};

#undef ACC_8
#undef ACC_16
#undef ACC_32
#undef ACC_64
#undef TEN
#undef REGS_16
#undef REGS_24
#undef REGS_32
#undef REGS_40
#undef REGS_48
#undef REGS_56
#undef REGS_64
#undef REGS_80
#undef REGS_96
#undef REGS_112
#undef REGS_128
#undef MMA_SHARED
#undef MMA_REGISTERS
#undef MMA_SHAPES

}  // namespace sm90
