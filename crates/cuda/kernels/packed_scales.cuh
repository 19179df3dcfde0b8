// Scales and minimums of packed block weights as the tiles have them, without d and dmin of the chunk, and their products with sums of x.
#pragma once

#include "packed.cuh"

// c[16, 8] += a[16, 8] · b[8, 8]
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])), "r"(b0), "r"(b1));
}

// Byte `i` of `w`, less `zero`, as a float: 2²³ + byte, minus 2²³ + zero.
__device__ __forceinline__ float byte_float(uint32_t w, int i, int zero = 0) {
    return __uint_as_float(__byte_perm(w, 0x4B000000u, 0x7440u | i)) - float(8388608 + zero);
}

// Scale and minimum of rows g and g + 8 for a group of a tile as the tile has them, without d and dmin of the chunk. `scales`: those of
// the row pair.
template <class L> __device__ __forceinline__ void raw_scales(const uint32_t (&w)[L::PAIR / 4], int group, float (&scale)[2], float (&offset)[2]) {
    if constexpr (L::KIND == Scales::D || L::KIND == Scales::DM) {
        constexpr int step = L::KIND == Scales::D ? 1 : 2;
        const float2 d = __half22float2(reinterpret_cast<const __half2&>(w[group * step]));
        scale[0] = d.x, scale[1] = d.y;
        if constexpr (L::KIND == Scales::DM) {
            const float2 m = __half22float2(reinterpret_cast<const __half2&>(w[group * step + 1]));
            offset[0] = m.x, offset[1] = m.y;
        }
    } else {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if constexpr (L::KIND == Scales::U8x2) {
                scale[r] = byte_float(w[group], 2 * r), offset[r] = byte_float(w[group], 2 * r + 1);
            } else if constexpr (L::KIND == Scales::I8) {
                scale[r] = byte_float(w[group / 2] ^ 0x80808080u, 2 * (group % 2) + r, 128);
            } else {
                scale[r] = byte_float(w[group / 2] & 0x0F0F0F0Fu, 2 * (group % 2) + r);
                offset[r] = byte_float(w[group / 2] >> 4 & 0x0F0F0F0Fu, 2 * (group % 2) + r);
            }
        }
    }
}

// Of rows g and g + 8: `raw_scales` for a group that is no constant.
template <class L> __device__ __forceinline__ void group_scales(uint32_t of_pair, uint32_t group, float (&scale)[2], float (&offset)[2]) {
    if constexpr (L::KIND == Scales::D) {
        const uint32_t w[L::PAIR / 4] = {lds32(of_pair + group * 4)};
        raw_scales<L>(w, 0, scale, offset);
    } else if constexpr (L::KIND == Scales::DM) {
        const uint2 v = lds64(of_pair + group * 8);
        const uint32_t w[L::PAIR / 4] = {v.x, v.y};
        raw_scales<L>(w, 0, scale, offset);
    } else if constexpr (L::KIND == Scales::U8x2) {
        const uint32_t w[L::PAIR / 4] = {lds32(of_pair + group * 4)};
        raw_scales<L>(w, 0, scale, offset);
    } else {
        const uint32_t w[L::PAIR / 4] = {lds32(of_pair + group / 2 * 4) >> (group % 2 * 16)};
        raw_scales<L>(w, 0, scale, offset);
    }
}

// Scales and minimums of eight groups from 8 · `set` on of a chunk's `tiles`, as the A operand of `mma_tf32`.
template <class L> __device__ __forceinline__ void set_scales(uint32_t tiles, int set, int lane, float (&scale)[4], float (&offset)[4]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const uint32_t group = set * 8 + k * 4 + lane % 4, in_tile = group % L::GROUPS;
        const uint32_t of_pair = tiles + group / L::GROUPS * L::TILE + L::LO_BYTES + L::HI_BYTES + lane / 4 * L::PAIR;
        float s[2], m[2] = {};
        group_scales<L>(of_pair, in_tile, s, m);
        scale[2 * k] = s[0], scale[2 * k + 1] = s[1], offset[2 * k] = m[0], offset[2 * k + 1] = m[1];
    }
}
