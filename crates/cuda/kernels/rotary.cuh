// Rotary embedding and the norms of q and k, for every kernel that has them.
#pragma once

#include "common.cuh"

// (cos, sin) of position · freq, to an absolute 1e-6 for positions up to 2^24.
//
// The product is kept in two floats (at position 1e5 one float of it is off by 0.004 radians) and brought into [-π, π] by
// a multiple of 2π in two floats, where the hardware's sine is accurate and takes one instruction.
__device__ __forceinline__ float2 rotation(int position, float freq) {
    constexpr float TURN = 6.2831854820251465f, TURN_REST = -1.7484556000744883e-7f, TURNS_PER_RADIAN = 0.15915494309189535f;
    const float t = static_cast<float>(position);
    const float angle = t * freq, rest = fmaf(t, freq, -angle);
    const float turns = rintf(angle * TURNS_PER_RADIAN);
    const float r = fmaf(turns, -TURN_REST, fmaf(turns, -TURN, angle)) + rest;
    return make_float2(__cosf(r), __sinf(r));
}

template <class C> __device__ __forceinline__ void store_row(C* to, const float (&x)[8]) {
#pragma unroll
    for (int first = 0; first < 8; first += Pack<C>::N) {
        Pack<C> pack;
#pragma unroll
        for (int i = 0; i < Pack<C>::N; i++) pack.v[i] = from_f32<C>(x[first + i]);
        store_pack(to + first, pack);
    }
}

// What is done to each head of q and k between the projection and attention.
struct HeadChange {
    const float* q_weight;  // [head_dim] f32, null: no norm
    const float* k_weight;  // as q_weight
    const float* inv_freq;  // [pairs] f32, null: no rotation
    const int* positions;   // [tokens] i32
    int head_dim;
    int pairs;
    int interleaved;  // 0: (i, i + pairs), 1: (2i, 2i + 1)
    float eps, scale;

    // Scaled cosine and sine of a pair's angle.
    __device__ __forceinline__ float2 turn(int position, float freq) const {
        const float2 turn = rotation(position, freq);
        return make_float2(turn.x * scale, turn.y * scale);
    }
};

// Eight elements of a head, `first` onwards: the share of one of the LANES lanes that own the head together, LANES a power of two.
// head_dim is a multiple of 8, and with halves `pairs` too. Operations are spelled out: every kernel is to round alike.
template <int LANES>
struct HeadPart {
    int first, partner;  // with halves, an element's partner lies in another lane
    bool in_head, turned, lower;

    __device__ __forceinline__ explicit HeadPart(const HeadChange& p) {
        const int lane = threadIdx.x % LANES, half = p.pairs / 8;
        first = lane * 8, in_head = first < p.head_dim;
        lower = lane < half, partner = lower ? lane + half : lane - half;
        turned = p.inv_freq && in_head && first < 2 * p.pairs;
    }

    // Which pair element i belongs to, and whether it is turned: with interleaved pairs the last eight may be cut.
    __device__ __forceinline__ int pair(const HeadChange& p, int i) const {
        return p.interleaved ? (first + i) / 2 : lower ? first + i : first + i - p.pairs;
    }
    __device__ __forceinline__ bool turns(const HeadChange& p, int i) const { return turned && first + i < 2 * p.pairs; }

    // x = x / sqrt(mean(x²) + eps) · weight where `changes`; every lane of the warp calls it.
    __device__ __forceinline__ void norm(const HeadChange& p, float (&x)[8], const float (&weight)[8], bool changes) const {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) squares = fmaf(x[i], x[i], squares);
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(FULL, squares, offset);
        const float factor = rsqrtf(__fdividef(squares, p.head_dim) + p.eps);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (changes) x[i] *= factor * weight[i];
    }

    // Turns each element by its cosine and sine where `changes`; every lane of the warp calls it.
    __device__ __forceinline__ void rotate(const HeadChange& p, float (&x)[8], const float2 (&turn)[8], bool changes) const {
        float other[8];
        if (p.interleaved) {
#pragma unroll
            for (int i = 0; i < 8; i++) other[i] = i % 2 == 0 ? -x[i + 1] : x[i - 1];
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) other[i] = __shfl_sync(FULL, x[i], partner, LANES);
#pragma unroll
            for (int i = 0; i < 8; i++) other[i] = lower ? -other[i] : other[i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (changes && turns(p, i)) x[i] = fmaf(x[i], turn[i].x, __fmul_rn(other[i], turn[i].y));
    }
};
