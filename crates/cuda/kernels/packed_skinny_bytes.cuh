// Products of up to 8 tokens over the tensor cores' bytes, for `packed_skinny`: as packed_int8.cuh, but B's eight columns are the high and
// the low bytes of four tokens. A product is one group of columns that share a scale; scales that are integers multiply it as integers,
// so that a chunk becomes a float once. What minimums and biases of codes add is scales times sums of q, a product of tf32: a sum is two
// of its numbers, which stand in the token's two columns, a scale is one.
#pragma once

#include "packed_bytes.cuh"
#include "packed_linear.cuh"
#include "packed_scales.cuh"

template <bool SIGNED> __device__ __forceinline__ void mma_bytes_16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    if constexpr (SIGNED) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(b));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(b));
    }
}

// Byte I of `w` as an integer.
template <bool SIGNED, int I> __device__ __forceinline__ int byte_int(uint32_t w) {
    int v;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(v) : "r"(w), "n"(SIGNED ? 0x1111 * (8 | I) - 8 : 0x4440 | I));
    return v;
}

// T: tokens, 4 or 8.
template <class L_, int T> struct SkinnyBytes {
    using L = L_;
    static constexpr int TOKENS = T, NT = T / 4, EACH = 4, VALUES = 2;
    static constexpr bool SIXTEENFOLD = L::LO == 4 && L::HI == 0 && !L::TABLE, SIGNED = L::LO == 8 || L::TABLE;
    static constexpr int BIAS = SIGNED ? 0 : L::BIAS;
    static constexpr bool HAS_SUMS = L::HAS_MIN || BIAS != 0;
    static constexpr int GROUPS = CHUNK_TILES * L::GROUPS, SETS = GROUPS / 8;
    static constexpr uint32_t X = NT * CHUNK_TILES * WARP * 16, SUMS = HAS_SUMS ? SETS * NT * WARP * 8 : 0, UNITS = T * 4;
    static constexpr uint32_t BYTES = X + SUMS + UNITS;

    __device__ static __forceinline__ uint32_t token_of(uint32_t nt, uint32_t lane, uint32_t) { return nt * 4 + lane % 4; }
    __device__ static __forceinline__ uint32_t row_of(uint32_t lane, uint32_t e) { return lane / 4 + e * 8; }

    // Lanes of a tile change places by tile, so that neither side meets a bank twice.
    __device__ static __forceinline__ uint32_t place(uint32_t nt, uint32_t tile, uint32_t lane) {
        return ((nt * CHUNK_TILES + tile) * WARP + (lane ^ (tile % 2 | tile / 2 << 2))) * 16;
    }

    __device__ static __forceinline__ void prepare(const PackedLinearParams& p, uint32_t chunk, uint32_t at, uint32_t nt, int lane, float (&square)[EACH]) {
        // This lane's columns of the 16 of a step: 4h to 4h + 3 and 8 + 4h to 8 + 4h + 3.
        const uint32_t step = lane / 2, h = lane % 2, col = chunk * CHUNK_COLS + step * 16 + h * 4;
        const bool inside = col < p.cols;
        uint2 raw[EACH][2];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const uint32_t token = nt * EACH + i;
            const bf16* from = p.x + size_t(token) * p.x_stride + col;
#pragma unroll
            for (int k = 0; k < 2; k++) raw[i][k] = inside && token < p.tokens ? *reinterpret_cast<const uint2*>(from + 8 * k) : uint2{0, 0};
        }
        float w[8];
        if (p.norm) {
            const float* weights = p.norm + (inside ? col : 0);
            const float4 a = *reinterpret_cast<const float4*>(weights), b = *reinterpret_cast<const float4*>(weights + 8);
            w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const uint32_t words[4] = {raw[i][0].x, raw[i][0].y, raw[i][1].x, raw[i][1].y};
            float v[8];
            uint32_t largest;
#pragma unroll
            for (int k = 0; k < 4; k++) v[2 * k] = __uint_as_float(words[k] << 16), v[2 * k + 1] = __uint_as_float(words[k] & 0xFFFF0000u);
            if (p.norm) {
                float high = 0.0f;
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    square[i] = fmaf(v[k], v[k], square[i]);
                    v[k] *= w[k];
                    high = max_or_nan(high, fabsf(v[k]));
                }
                largest = __float_as_uint(high) & 0x7FFFFFFFu;
            } else {
                // Magnitudes as integers: a NaN is the largest.
                uint32_t high = 0;
#pragma unroll
                for (int k = 0; k < 4; k++) high = __vmaxu2(high, words[k] & 0x7FFF7FFFu);
                largest = max(high << 16, high & 0xFFFF0000u);
            }
            const float amax = __uint_as_float(__reduce_max_sync(FULL, largest)), inverse = amax > 1e-30f ? 32512.0f / amax : 0.0f;
            uint32_t low[8], high[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                // 1.5·2²³ + q has q in its low bits; 128 more rounds the high byte.
                low[k] = __float_as_uint(fmaf(v[k], inverse, 12582912.0f)), high[k] = low[k] + 128;
            }
            const uint32_t column = 2 * i;   // of B: high bytes, and the next: low bytes
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const uint32_t l = __byte_perm(__byte_perm(low[2 * k], low[2 * k + 4], 0x0040), __byte_perm(low[2 * k + 1], low[2 * k + 5], 0x0040), 0x5410);
                const uint32_t b = __byte_perm(__byte_perm(high[2 * k], high[2 * k + 4], 0x0051), __byte_perm(high[2 * k + 1], high[2 * k + 5], 0x0051), 0x5410);
                const uint32_t to = column * 4 + 2 * h + k, in = step % 4 * 4;
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + place(nt, step / 4, to) + in), "r"(b) : "memory");
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + place(nt, step / 4, to + 4) + in), "r"(l) : "memory");
            }
            if constexpr (HAS_SUMS) {
                uint32_t sum = 0u - 8u * 0x4B400000u;
#pragma unroll
                for (int k = 0; k < 8; k++) sum += low[k];
                sum += __shfl_xor_sync(FULL, sum, 1);
                if constexpr (L::GROUP == 32) sum += __shfl_xor_sync(FULL, sum, 2);
                // In two numbers of tf32, one for each of the token's columns.
                constexpr int LANES = L::GROUP / 8;
                const uint32_t group = lane / LANES;
                const float whole = float(int(sum)), first = __uint_as_float(__float_as_uint(whole) & 0xFFFFE000u);
                const uint32_t to = at + X + ((group / 8 * NT + nt) * WARP + column * 4 + group % 4) * 8 + group / 4 % 2 * 4;
                if (lane % LANES == 0) {
                    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(first) : "memory");
                    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + 4 * 8), "f"(whole - first) : "memory");
                }
            }
            if (lane == 0) asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + X + SUMS + (nt * EACH + i) * 4), "f"(amax * (1.0f / 32512.0f)) : "memory");
        }
    }

    template <int J, int HALF>
    __device__ static __forceinline__ void products(const Codes<L>& codes, const uint32_t (&w)[L::PAIR / 4], const uint4 (&b)[NT], int (&dot)[NT][4], float (&sum)[NT][2]) {
        const uint32_t a[4] = {code_bytes<L, 2 * HALF, 0>(codes), code_bytes<L, 2 * HALF, 1>(codes), code_bytes<L, 2 * HALF + 1, 0>(codes), code_bytes<L, 2 * HALF + 1, 1>(codes)};
        if constexpr (L::GROUP == 32) {
            int c[NT][4] = {};
#pragma unroll
            for (int nt = 0; nt < NT; nt++) mma_bytes<SIGNED>(c[nt], a, HALF ? b[nt].z : b[nt].x, HALF ? b[nt].w : b[nt].y);
            scaled<HALF>(w, c, dot, sum);
        } else {
            int c[NT][4] = {}, d[NT][4] = {};
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                mma_bytes_16<SIGNED>(c[nt], a[0], a[1], HALF ? b[nt].z : b[nt].x);
                mma_bytes_16<SIGNED>(d[nt], a[2], a[3], HALF ? b[nt].w : b[nt].y);
            }
            scaled<2 * HALF>(w, c, dot, sum);
            scaled<2 * HALF + 1>(w, d, dot, sum);
        }
    }

    // Adds a group's products times its scale.
    template <int GROUP> __device__ static __forceinline__ void scaled(const uint32_t (&w)[L::PAIR / 4], const int (&c)[NT][4], int (&dot)[NT][4], float (&sum)[NT][2]) {
        if constexpr (L::BLOCK_256) {
            int s[2];
            if constexpr (L::KIND == Scales::U8x2) {
                s[0] = byte_int<false, 0>(w[GROUP]), s[1] = byte_int<false, 2>(w[GROUP]);
            } else {
                constexpr bool I8 = L::KIND == Scales::I8;
                const uint32_t v = I8 ? w[GROUP / 2] : w[GROUP / 2] & 0x0F0F0F0Fu;
                s[0] = byte_int<I8, GROUP % 2 * 2>(v), s[1] = byte_int<I8, GROUP % 2 * 2 + 1>(v);
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
#pragma unroll
                for (int i = 0; i < 4; i++) dot[nt][i] += s[i / 2] * c[nt][i];
            }
        } else {
            float s[2], m[2];
            raw_scales<L>(w, GROUP, s, m);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
#pragma unroll
                for (int r = 0; r < 2; r++) sum[nt][r] = fmaf(float(256 * c[nt][2 * r] + c[nt][2 * r + 1]), s[r], sum[nt][r]);
            }
        }
    }

    template <int J> __device__ static __forceinline__ void tiles(uint32_t tile, uint32_t x, int lane, int (&dot)[NT][4], float (&sum)[NT][2]) {
        Codes<L> codes;
        Scale<L> scales;
        codes.load(tile, lane);
        scales.load(tile, lane);
        uint4 b[NT];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) b[nt] = lds128(x + place(nt, J, lane));
        products<J, 0>(codes, scales.w, b, dot, sum);
        products<J, 1>(codes, scales.w, b, dot, sum);
        if constexpr (J + 1 < CHUNK_TILES) tiles<J + 1>(tile + L::TILE, x, lane, dot, sum);
    }

    __device__ static __forceinline__ void multiply(uint32_t at, uint32_t x, int lane, float (&total)[NT][VALUES]) {
        const uint32_t t = lane % 4;
        Super<L> super;
        super.load(at, lane);
        int dot[NT][4] = {};
        float sum[NT][2] = {};
        tiles<0>(at + L::SUPER, x, lane, dot, sum);
        float bias[NT][4] = {}, less[NT][4] = {};
        if constexpr (HAS_SUMS) {
#pragma unroll
            for (int set = 0; set < SETS; set++) {
                float scale[4], offset[4];
                set_scales<L>(at + L::SUPER, set, lane, scale, offset);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    const uint2 sums = lds64(x + X + ((set * NT + nt) * WARP + lane) * 8);
                    if constexpr (BIAS != 0) mma_tf32(bias[nt], scale, sums.x, sums.y);
                    if constexpr (L::HAS_MIN) mma_tf32(less[nt], offset, sums.x, sums.y);
                }
            }
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            const float unit = __uint_as_float(lds32(x + X + SUMS + (nt * 4 + t) * 4));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v = L::BLOCK_256 ? fmaf(float(dot[nt][2 * r]), 256.0f, float(dot[nt][2 * r + 1])) : sum[nt][r];
                if constexpr (SIXTEENFOLD) v *= r ? 0.0625f : 1.0f;
                if constexpr (BIAS != 0) v = fmaf(bias[nt][2 * r] + bias[nt][2 * r + 1], -float(BIAS), v);
                if constexpr (L::BLOCK_256) v *= super.d[r];
                if constexpr (L::HAS_MIN) v = fmaf(less[nt][2 * r] + less[nt][2 * r + 1], L::BLOCK_256 ? -super.dmin[r] : 1.0f, v);
                total[nt][r] = fmaf(v, unit, total[nt][r]);
            }
        }
    }
};
