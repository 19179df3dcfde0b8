// What a thread of the Hopper prefill kernel does with the scores of its two rows. They lie as wgmma leaves them: s[i] is of row
// i / 2 % 2 (the second is 8 below the first) and of key i / 4 * 8 + i % 2 after the thread's first; four neighbouring lanes
// share the rows.
#pragma once

#include "common.cuh"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Hides the keys after each row's position, or those that its window has left behind. `limit[r]` is the last key to be seen,
// or the last not to be, relative to this thread's first key.
template <bool AFTER, int COUNT>
__device__ __forceinline__ void hide(float (&s)[COUNT], const int (&limit)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int key = i / 4 * 8 + (i & 1), last = limit[i / 2 % 2];
        if (AFTER ? key > last : key <= last) s[i] = -INFINITY;
    }
}

template <int COUNT>
__device__ __forceinline__ void soft_cap(float (&s)[COUNT], float cap, float cap_log2) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) s[i] = cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(s[i] * cap_log2));
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

// Online softmax of a thread's two rows: `s` becomes 2^(s · scale − max). The reference maximum moves only when some row of
// the warp outgrows it by 2^8, so that the output is rarely rescaled; then it returns true and `factor` is what past
// sums and outputs shrink by.
template <int COUNT>
__device__ __forceinline__ bool softmax(float (&s)[COUNT], float (&max)[2], float (&sum)[2], float (&factor)[2], float scale) {
    float top[2][2] = {{s[0], s[1]}, {s[2], s[3]}};
#pragma unroll
    for (int i = 4; i < COUNT; i++) top[i / 2 % 2][i & 1] = fmaxf(top[i / 2 % 2][i & 1], s[i]);
    float now[2];
#pragma unroll
    for (int r = 0; r < 2; r++) now[r] = fmaxf(max[r], quad_max(fmaxf(top[r][0], top[r][1])));
    bool moved = __any_sync(FULL, (now[0] - max[0]) * scale > 8.0f || (now[1] - max[1]) * scale > 8.0f);
    if (moved) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            factor[r] = now[r] == max[r] ? 1.0f : exp2_fast((max[r] - now[r]) * scale);
            sum[r] *= factor[r];
            max[r] = now[r];
        }
    }
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; r++) offset[r] = max[r] == -INFINITY ? 0.0f : max[r] * scale;
    float part[2][2] = {};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        s[i] = exp2_fast(fmaf(s[i], scale, -offset[i / 2 % 2]));
        part[i / 2 % 2][i & 1] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; r++) sum[r] += part[r][0] + part[r][1];
    return moved;
}

// Transposes 4 words of each of 4 neighbouring lanes: word k of lane t goes to word t of lane k.
__device__ __forceinline__ void quad_transpose(uint32_t (&r)[4], int t) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (k & step) continue;
            uint32_t mine = t & step ? r[k] : r[k + step];
            uint32_t other = __shfl_xor_sync(FULL, mine, step);
            if (t & step) {
                r[k] = other;
            } else {
                r[k + step] = other;
            }
        }
    }
}

}  // namespace
