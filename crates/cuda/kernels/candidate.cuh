// A token and its score as one integer, for finding the likeliest of many: the larger score wins, then the lower id.
#pragma once

#include "common.cuh"

// Unsigned integers in the order of the floats.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float unordered(uint32_t key) {
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ uint64_t candidate(float score, uint32_t id) { return static_cast<uint64_t>(ordered(score)) << 32 | ~id; }
__device__ __forceinline__ uint32_t candidate_id(uint64_t candidate) { return ~static_cast<uint32_t>(candidate); }

// The best candidate so far of one thread. Scores are not negative zero, which would be less than zero.
struct Best {
    float score = -INFINITY;
    uint32_t id = 0;

    // Written so that NaN is never taken.
    __device__ __forceinline__ void take(float s, uint32_t token) {
        if (s > score) score = s, id = token;
    }
    __device__ __forceinline__ uint64_t as_candidate() const { return candidate(score, id); }
};
