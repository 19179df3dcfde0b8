// Barriers in shared memory, asynchronous copies that complete on them, and clusters; shared addresses are 32 bits.
//
// Before sm_90 the copies are cp.async by all lanes of a warp, and a cluster is one block.
#pragma once

#include "common.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_BULK 1
#else
#define HAS_BULK 0
#endif

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes the initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
#if HAS_BULK
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Waits for the end of the phase of `parity`.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t passed = 0;
    do {
#if HAS_BULK
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#endif
                     : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
    } while (!passed);
}

// Arrives on a barrier of this block. What the caller's warp wrote before its __syncwarp() is visible to whoever waits.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}

// Arrives, and announces `bytes` that asynchronous copies and stores bring before the phase may end.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
#if HAS_BULK
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ uint32_t cluster_size() {
    uint32_t size = 1;
#if HAS_BULK
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    return size;
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
#if HAS_BULK
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

// The address of `at` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_cluster(uint32_t at, uint32_t rank) {
#if HAS_BULK
    uint32_t out;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(at), "r"(rank));
    return out;
#else
    return at;
#endif
}

// `at`, `barrier`: addresses from `in_cluster`.
__device__ __forceinline__ void cluster_store(uint32_t at, float v) {
#if HAS_BULK
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
#else
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
#endif
}

// Stores and completes 16 bytes on `barrier`, which lies in the same block: no fence, which would cost a microsecond.
__device__ __forceinline__ void cluster_store_async(uint32_t at, float4 v, uint32_t barrier) {
#if HAS_BULK
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(at), "f"(v.x), "f"(v.y),
                 "f"(v.z), "f"(v.w), "r"(barrier) : "memory");
#endif
}

__device__ __forceinline__ void cluster_store_async(uint32_t at, float2 v, uint32_t barrier) {
#if HAS_BULK
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(at), "f"(v.x), "f"(v.y), "r"(barrier) : "memory");
#endif
}

// Tells another block that shared memory it writes to has been read. It orders no writes.
__device__ __forceinline__ void cluster_arrive(uint32_t barrier) {
#if HAS_BULK
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// The first half of `cluster_sync`.
__device__ __forceinline__ void cluster_sync_arrive() {
#if HAS_BULK
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_sync_wait() {
#if HAS_BULK
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Between all threads of the cluster.
__device__ __forceinline__ void cluster_sync() {
    cluster_sync_arrive();
    cluster_sync_wait();
}

// Copies `bytes` (a multiple of 16) into shared memory and completes on `barrier`, initialised with WARP_COPY_ARRIVALS; called by
// a whole warp. For what is read once: it is the first to leave L2, where code, activations and the KV cache stay.
constexpr uint32_t WARP_COPY_ARRIVALS = HAS_BULK ? 1 : WARP;
__device__ __forceinline__ void warp_copy(uint32_t dst, const uint8_t* src, uint32_t bytes, uint32_t barrier, int lane) {
#if HAS_BULK
    if (lane == 0) {
        barrier_expect(barrier, bytes);
        constexpr uint64_t evict_first = 0x12F0000000000000;
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(dst),
                     "l"(src), "r"(bytes), "r"(barrier), "l"(evict_first) : "memory");
    }
#else
    for (uint32_t i = lane * 16; i < bytes; i += WARP * 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst + i), "l"(src + i) : "memory");
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// Asks for `bytes` (a multiple of 16) in L2.
__device__ __forceinline__ void prefetch_l2(const uint8_t* src, uint32_t bytes) {
#if HAS_BULK
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(src), "r"(bytes) : "memory");
#endif
}
