// The sine and cosine of a position's angle, for every kernel that rotates.
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
