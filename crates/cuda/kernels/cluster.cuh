// Blocks that run side by side and read each other's shared memory (sm_90 and later). Elsewhere a cluster is one block.
#pragma once

#include "common.cuh"

__device__ __forceinline__ int cluster_rank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

__device__ __forceinline__ void cluster_sync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// The same variable in the shared memory of another block of the cluster.
template <class T> __device__ __forceinline__ T of_rank(const T& variable, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(&variable), "r"(rank));
    return *there;
#else
    return variable;
#endif
}

