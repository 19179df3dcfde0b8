// Gumbel noise from counter-based random numbers, as crates/kernels/src/ops/sample.rs defines it.
#pragma once

#include "common.cuh"

// The largest Gumbel noise there is, rounded up.
constexpr float MAX_NOISE = 16.7f;

// The first word of Philox 4x32-10 (Salmon et al. 2011).
__device__ __forceinline__ uint32_t philox(uint32_t token, uint32_t position, uint64_t seed) {
    uint32_t c0 = token, c1 = position, c2 = 0, c3 = 0, k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u, p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

__device__ __forceinline__ float gumbel(uint32_t bits) {
    const float u = (static_cast<float>(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
    return -logf(-logf(u));
}

// Whether the noise of these bits is surely less than `least`: cheaper than the noise. Its u is below exp(-exp(-least)),
// with room for the error of the fast functions.
__device__ __forceinline__ bool noise_is_less(uint32_t bits, float least) {
    const float u = static_cast<float>(bits >> 9) * (1.0f / 8388608.0f);
    return u < __expf(-__expf(-least)) * (1.0f - 1e-5f) - 1e-5f;
}
