// Products of up to 16 tokens as bf16, for `packed_skinny`: codes become exact integers by one `lop3` each and go to mma.m16n8k16 as A,
// x is B, from shared memory. Scales multiply the f32 sums of a group of columns; what minimums and the bias of codes add is scales
// times sums of x, a product of tf32: a sum is two of its numbers, a scale is one.
#pragma once

#include "mma.cuh"
#include "packed_linear.cuh"
#include "packed_scales.cuh"

// T: tokens, 8 or 16.
template <class L_, int T> struct SkinnyProduct {
    using L = L_;
    static constexpr int TOKENS = T, NT = T > 8 ? 2 : 1, EACH = T / NT;   // NT: products beside each other, of EACH tokens
    static constexpr int VALUES = 4;                                       // results of a lane in one of them
    static constexpr bool BIASED = L::LO != 8 && !L::TABLE;   // codes come as 128 + code
    static constexpr bool HAS_SUMS = BIASED || L::HAS_MIN;
    static constexpr int GROUPS = CHUNK_TILES * L::GROUPS, SETS = GROUPS / 8 > 0 ? GROUPS / 8 : 1;
    static constexpr uint32_t X = T * CHUNK_COLS * 2;                        // bytes of x of a chunk
    static constexpr uint32_t SUMS = HAS_SUMS ? SETS * NT * WARP * 8 : 0;   // bytes of its sums by group
    static constexpr uint32_t BYTES = X + SUMS;

    // Of results `e` of lane `lane`.
    __device__ static __forceinline__ uint32_t token_of(uint32_t nt, uint32_t lane, uint32_t e) { return nt * 8 + lane % 4 * 2 + e % 2; }
    __device__ static __forceinline__ uint32_t row_of(uint32_t lane, uint32_t e) { return lane / 4 + e / 2 * 8; }

    // Row `token` of eight, a piece of eight columns.
    __device__ static __forceinline__ uint32_t piece_at(uint32_t token, uint32_t piece) { return token * (CHUNK_COLS * 2) + ((piece ^ (token % 8)) << 4); }

    // Operands B of two steps, 2·pair and the next.
    __device__ static __forceinline__ void load_x(uint32_t (&r)[4], uint32_t at, uint32_t nt, int pair, int lane) {
        ldmatrix_x4(r, at + piece_at(nt * 8 + lane % 8 % T, pair * 4 + lane / 8));
    }

    // Brings the tokens of product `nt` in `chunk` of x to `at`. square: this lane's Σ x² of each.
    __device__ static __forceinline__ void prepare(const PackedLinearParams& p, uint32_t chunk, uint32_t at, uint32_t nt, int lane, float (&square)[EACH]) {
        const uint32_t col = chunk * CHUNK_COLS + lane * 8;
        const bool inside = col < p.cols;
        uint4 raw[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const uint32_t token = nt * EACH + i;
            raw[i] = inside && token < p.tokens ? *reinterpret_cast<const uint4*>(p.x + size_t(token) * p.x_stride + col) : uint4{0, 0, 0, 0};
        }
        if (p.norm) {
            const float4* weights = reinterpret_cast<const float4*>(p.norm + (inside ? col : 0));
            const float4 w[2] = {weights[0], weights[1]};
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                uint32_t* words = reinterpret_cast<uint32_t*>(&raw[i]);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float low = __uint_as_float(words[e] << 16), high = __uint_as_float(words[e] & 0xFFFF0000u);
                    square[i] = fmaf(low, low, fmaf(high, high, square[i]));
                    words[e] = pack2<bf16>(low * (e % 2 ? w[e / 2].z : w[e / 2].x), high * (e % 2 ? w[e / 2].w : w[e / 2].y));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at + piece_at(nt * EACH + i, lane)), "r"(raw[i].x), "r"(raw[i].y),
                         "r"(raw[i].z), "r"(raw[i].w) : "memory");
        }
        if constexpr (HAS_SUMS) {
            // x as A times a matrix that picks groups: a lane receives groups t and t + 4 of token g.
            __syncwarp();
            const int own = lane / 8 + lane / 4 % 2 * 4;
            float sum[SETS][4] = {};
#pragma unroll
            for (int pair = 0; pair < 8; pair++) {
                uint32_t r[4];
                load_x(r, at, nt, pair, lane);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int group = (2 * pair + k) / L::STEPS;
                    const uint32_t a[4] = {r[2 * k], 0, r[2 * k + 1], 0}, pick = own == group % 8 ? BF16X2_ONE : 0;
                    mma_16x8x16<bf16>(sum[group / 8], a, pick, pick);
                }
            }
#pragma unroll
            for (int set = 0; set < SETS; set++) {
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at + X + ((set * NT + nt) * WARP + lane) * 8), "f"(sum[set][0]), "f"(sum[set][1])
                             : "memory");
            }
        }
    }

    // Adds the product of the weights at `at` and the x at `x`.
    __device__ static __forceinline__ void multiply(uint32_t at, uint32_t x, int lane, float (&total)[NT][4]) {
        Super<L> super;
        super.load(at, lane);
        const uint32_t tiles = at + L::SUPER;
        float acc[NT][4] = {};
#pragma unroll
        for (int j = 0; j < CHUNK_TILES; j++) {
            const uint32_t tile = tiles + j * L::TILE;
            Codes<L> codes;
            Scale<L> scales;
            codes.load(tile, lane);
            scales.load(tile, lane);
            uint32_t b[NT][2][4];
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
#pragma unroll
                for (int half = 0; half < 2; half++) load_x(b[nt][half], x, nt, 2 * j + half, lane);
            }
#pragma unroll
            for (int group = 0; group < L::GROUPS; group++) {
                float product[NT][4] = {};
#pragma unroll
                for (int k = 0; k < L::STEPS; k++) {
                    const int s = group * L::STEPS + k;
                    uint32_t a[4];
                    codes.template unpack<BIASED>(s, a);
#pragma unroll
                    for (int nt = 0; nt < NT; nt++) mma_16x8x16<bf16>(product[nt], a, b[nt][s / 2][s % 2 * 2], b[nt][s / 2][s % 2 * 2 + 1]);
                }
                float scale[2], offset[2];
                raw_scales<L>(scales.w, group, scale, offset);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[nt][i] = fmaf(scale[i / 2], product[nt][i], acc[nt][i]);
                }
            }
        }
        float bias[NT][4] = {}, less[NT][4] = {};
        if constexpr (HAS_SUMS) {
            // Scales times sums, and minimums times sums: a sum as two numbers of tf32, a scale is one.
#pragma unroll
            for (int set = 0; set < SETS; set++) {
                float scale[4], offset[4];
                set_scales<L>(tiles, set, lane, scale, offset);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    const uint2 sum = lds64(x + X + ((set * NT + nt) * WARP + lane) * 8);
                    const uint32_t hi0 = sum.x & 0xFFFFE000u, hi1 = sum.y & 0xFFFFE000u;
                    const uint32_t lo0 = __float_as_uint(__uint_as_float(sum.x) - __uint_as_float(hi0));
                    const uint32_t lo1 = __float_as_uint(__uint_as_float(sum.y) - __uint_as_float(hi1));
                    mma_tf32(bias[nt], scale, hi0, hi1);
                    mma_tf32(bias[nt], scale, lo0, lo1);
                    if constexpr (L::HAS_MIN) {
                        mma_tf32(less[nt], offset, hi0, hi1);
                        mma_tf32(less[nt], offset, lo0, lo1);
                    }
                }
            }
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = acc[nt][i];
                if constexpr (BIASED) v = fmaf(bias[nt][i], -float(128 + L::BIAS), v);
                if constexpr (L::BLOCK_256) {
                    total[nt][i] = fmaf(super.d[i / 2], v, total[nt][i]);
                    if constexpr (L::HAS_MIN) total[nt][i] = fmaf(-super.dmin[i / 2], less[nt][i], total[nt][i]);
                } else {
                    total[nt][i] += v;
                    if constexpr (L::HAS_MIN) total[nt][i] += less[nt][i];
                }
            }
        }
    }
};
