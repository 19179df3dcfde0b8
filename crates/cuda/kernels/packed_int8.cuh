// Products of one or two tokens over the tensor cores' bytes, for `packed_linear`: no code is converted to a float.
//
// x of a chunk of columns is rounded to 16 bits of its largest magnitude there, q = 256·hi + lo, finer than its bf16. Codes are
// the A operand of mma.m16n8k32 as they are; of B's eight columns each takes the high or the low bytes of one token and
// of one group of columns that share a scale, zeros elsewhere: what accumulates over products is the exact sum of each
// group by itself, and every lane of the result holds (hi, lo) of one group and token for two rows.
// Biases of codes are the accumulators' first values.
#pragma once

#include "packed_bytes.cuh"

// T: tokens.
template <class L_, int T> struct Int8Product {
    using L = L_;
    using Layout = L_;
    static constexpr int TOKENS = T;
    static constexpr int SUMS = 2;        // floats of a lane for a row tile: rows g and g + 8
    static constexpr int PARTS = 4 / T;   // lanes that hold parts of one result
    // Groups within the 32 columns of a product.
    static constexpr int HALVES = 32 / L::GROUP;
    // A pair of B's columns, hi and lo: (product of a set, token, half), from the last to the first quickest. A set of
    // products shares accumulators.
    static constexpr int PAIRS = T * HALVES;
    static constexpr int STEPS = 4 / PAIRS, SETS = 8 / STEPS;
    static constexpr int HALF_STEPS = HALVES == 2 ? 1 : 2;   // 16-column steps of a product that one column of B has
    static constexpr bool SIXTEENFOLD = L::LO == 4 && L::HI == 0 && !L::TABLE;
    static constexpr bool SIGNED = L::LO == 8 || L::TABLE;
    static constexpr int BIAS = SIGNED ? 0 : L::BIAS;
    static_assert(PAIRS <= 4, "B has eight columns");

    uint32_t raw[2 * SETS * HALF_STEPS];   // of the next chunk: what goes to this lane's column of B
    uint32_t b[8][2];
    int first[BIAS ? SETS : 1][2];
    float sums[L::HAS_MIN ? SETS : 1];   // Σ q of this lane's group
    float unit;        // of q, for the token of this lane's results
    float square = 0.0f;

    // Of a pair.
    __device__ static __forceinline__ uint32_t token_of(uint32_t pair) { return pair / HALVES % T; }
    __device__ static __forceinline__ uint32_t half_of(uint32_t pair) { return pair % HALVES; }
    __device__ static __forceinline__ uint32_t step_of(uint32_t pair) { return pair / PAIRS; }

    // This lane of B takes two of every eight columns: PIECES pairs, `offset` behind the first of a chunk.
    static constexpr int PIECES = 2 * SETS * HALF_STEPS;
    __device__ static __forceinline__ uint32_t first_col(uint32_t chunk, int lane) {
        const uint32_t pair = lane / 8;
        return chunk * CHUNK_COLS + step_of(pair) * 32 + (HALVES == 2 ? half_of(pair) * 16 : 0) + lane % 4 * 2;
    }
    __device__ static constexpr int offset(int i) { return i / (2 * HALF_STEPS) * STEPS * 32 + i % (2 * HALF_STEPS) * 8; }
    // Columns from the first on; none of a token that is not there.
    __device__ static __forceinline__ int columns_left(const PackedLinearParams& p, uint32_t first, uint32_t token) {
        return token < p.tokens ? int(p.cols - first) : 0;
    }

    __device__ __forceinline__ void fetch(const PackedLinearParams& p, uint32_t chunk, int lane) {
        const uint32_t token = token_of(lane / 8), first = first_col(chunk, lane);
        const int left = columns_left(p, first, token);
        const bf16* x = p.x + size_t(token) * p.x_stride + first;
#pragma unroll
        for (int i = 0; i < PIECES; i++) raw[i] = offset(i) < left ? *reinterpret_cast<const uint32_t*>(x + offset(i)) : 0;
    }

    __device__ __forceinline__ void prepare(const PackedLinearParams& p, uint32_t chunk, int lane) {
        float v[PIECES][2];
        uint32_t largest;
        if (p.norm) {
            const uint32_t first = first_col(chunk, lane);
            const int left = columns_left(p, first, token_of(lane / 8));
            const float* norm = p.norm + first;
            float high = 0.0f;
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                const float2 weight = offset(i) < left ? *reinterpret_cast<const float2*>(norm + offset(i)) : float2{0.0f, 0.0f};
                v[i][0] = __uint_as_float(raw[i] << 16), v[i][1] = __uint_as_float(raw[i] & 0xFFFF0000u);
                square = fmaf(v[i][0], v[i][0], fmaf(v[i][1], v[i][1], square));
                v[i][0] *= weight.x, v[i][1] *= weight.y;
                high = max_or_nan(high, max_or_nan(fabsf(v[i][0]), fabsf(v[i][1])));
            }
            largest = __float_as_uint(high);
        } else {
            // Magnitudes as integers: a NaN is the largest.
            uint32_t high = 0;
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                high = __vmaxu2(high, raw[i] & 0x7FFF7FFFu);
                v[i][0] = __uint_as_float(raw[i] << 16), v[i][1] = __uint_as_float(raw[i] & 0xFFFF0000u);
            }
            largest = max(high << 16, high & 0xFFFF0000u);
        }
        // Over the lanes of the same token.
        constexpr int TOKEN_BITS = 8 * (T - 1) * HALVES;
#pragma unroll
        for (int lanes = 1; lanes < WARP; lanes *= 2) {
            if (lanes != 4 && !(lanes & TOKEN_BITS)) largest = max(largest, __shfl_xor_sync(FULL, largest, lanes));
        }
        const float amax = __uint_as_float(largest), inverse = amax > 1e-30f ? 32512.0f / amax : 0.0f;
        // Results: those of pair lane % 4.
        unit = amax * (1.0f / 32512.0f);
        if constexpr (T > 1) unit = __shfl_sync(FULL, unit, lane % 4 * 8);
        // 1.5·2²³ + q has q in its low bits; 128 more rounds the high byte.
        const bool low_bytes = lane / 4 % 2;
        const float shift = low_bytes ? 12582912.0f : 12582912.0f + 128.0f;
        const uint32_t select = low_bytes ? 0x0040u : 0x0051u;
#pragma unroll
        for (int set = 0; set < SETS; set++) {
            uint32_t bytes[HALF_STEPS];
#pragma unroll
            for (int step = 0; step < HALF_STEPS; step++) {
                uint32_t q[2][2];
#pragma unroll
                for (int i = 0; i < 4; i++) q[i % 2][i / 2] = __float_as_uint(fmaf(v[2 * (set * HALF_STEPS + step) + i / 2][i % 2], inverse, shift));
                bytes[step] = __byte_perm(__byte_perm(q[0][0], q[0][1], select), __byte_perm(q[1][0], q[1][1], select), 0x5410);
            }
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const bool own = step_of(lane / 8) == k;
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    const bool there = own && (HALF_STEPS == 2 || half_of(lane / 8) == s);
                    b[set * STEPS + k][s] = there ? bytes[HALF_STEPS == 2 ? s : 0] : 0;
                }
            }
            if constexpr (L::HAS_MIN || BIAS != 0) {
                constexpr uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
                int sum[4] = {};
#pragma unroll
                for (int k = 0; k < STEPS; k++) mma_bytes<false>(sum, ones, b[set * STEPS + k][0], b[set * STEPS + k][1]);
                if constexpr (L::HAS_MIN) sums[set] = float(256 * sum[0] + sum[1]);
                if constexpr (BIAS != 0) first[set][0] = -BIAS * sum[0], first[set][1] = -BIAS * sum[1];
            }
        }
    }

    // Adds the products of the chunk at `at` to this lane's sums of a row tile, or sets them if `first`.
    __device__ __forceinline__ void multiply(uint32_t at, int lane, float* row_tile, bool first_chunk) const {
        const uint32_t t = lane % 4, g = lane / 4;
        Super<L> super;
        super.load(at, lane);
        const uint32_t tiles = at + L::SUPER;
        Codes<L> codes[CHUNK_TILES];
#pragma unroll
        for (int j = 0; j < CHUNK_TILES; j++) codes[j].load(tiles + j * L::TILE, lane);
        float dot[2] = {}, less[2] = {};
        sets<0>(codes, super, tiles + L::LO_BYTES + L::HI_BYTES + g * L::PAIR, t, dot, less);
        float2& sum = reinterpret_cast<float2*>(row_tile)[lane];
        float2 old = first_chunk ? float2{0.0f, 0.0f} : sum;
        const float unit_1 = SIXTEENFOLD ? unit * 0.0625f : unit;
        if constexpr (L::BLOCK_256) dot[0] *= super.d[0], dot[1] *= super.d[1];
        if constexpr (L::BLOCK_256 && L::HAS_MIN) less[0] *= -super.dmin[0], less[1] *= -super.dmin[1];
        old.x = fmaf(dot[0], unit, old.x), old.y = fmaf(dot[1], unit_1, old.y);
        if constexpr (L::HAS_MIN) old.x = fmaf(less[0], unit, old.x), old.y = fmaf(less[1], unit, old.y);
        sum = old;
    }

    template <int SET>
    __device__ __forceinline__ void sets(const Codes<L> (&codes)[CHUNK_TILES], const Super<L>& super, uint32_t scales, uint32_t t,
                                         float (&dot)[2], float (&less)[2]) const {
        int c[4];
        if constexpr (BIAS != 0) {
            c[0] = first[SET][0], c[1] = first[SET][1];
            c[2] = SIXTEENFOLD ? 16 * c[0] : c[0], c[3] = SIXTEENFOLD ? 16 * c[1] : c[1];
        } else {
            c[0] = c[1] = c[2] = c[3] = 0;
        }
        products<SET, 0>(codes, c);
        const uint32_t group = (SET * STEPS + step_of(t)) * HALVES + half_of(t);
        const uint32_t at = scales + group / L::GROUPS * L::TILE, in_tile = group % L::GROUPS;
        float scale[2], offset[2] = {};
        if constexpr (L::KIND == Scales::D || L::KIND == Scales::DM) {
            const uint32_t of_group = at + in_tile * (L::PAIR / L::GROUPS), d = lds32(of_group);
            const float2 f = __half22float2(reinterpret_cast<const __half2&>(d));
            scale[0] = f.x, scale[1] = f.y;
            if constexpr (L::KIND == Scales::DM) {
                const uint32_t m = lds32(of_group + 4);
                const float2 f = __half22float2(reinterpret_cast<const __half2&>(m));
                offset[0] = f.x, offset[1] = f.y;
            }
        } else if constexpr (L::KIND == Scales::U8x2) {
            const uint32_t w = lds32(at + in_tile * 4);
            scale[0] = float(w & 0xFF), offset[0] = float(w >> 8 & 0xFF), scale[1] = float(w >> 16 & 0xFF), offset[1] = float(w >> 24);
        } else {
            // Two bytes of the word: rows g and g + 8.
            const uint32_t w = lds32(at + in_tile / 2 * 4) >> (in_tile % 2 * 16);
            if constexpr (L::KIND == Scales::I8) {
                scale[0] = float(int8_t(w)), scale[1] = float(int8_t(w >> 8));
            } else {
                scale[0] = float(w & 15), offset[0] = float(w >> 4 & 15), scale[1] = float(w >> 8 & 15), offset[1] = float(w >> 12 & 15);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            dot[r] = fmaf(float(256 * c[2 * r] + c[2 * r + 1]), scale[r], dot[r]);
            if constexpr (L::HAS_MIN) less[r] = fmaf(offset[r], sums[SET], less[r]);
        }
        if constexpr (SET + 1 < SETS) sets<SET + 1>(codes, super, scales, t, dot, less);
    }

    template <int SET, int K> __device__ __forceinline__ void products(const Codes<L> (&codes)[CHUNK_TILES], int (&c)[4]) const {
        constexpr int J = SET * STEPS + K, S = J % 2 * 2;
        const Codes<L>& of = codes[J / 2];
        const uint32_t a[4] = {code_bytes<L, S, 0>(of), code_bytes<L, S, 1>(of), code_bytes<L, S + 1, 0>(of), code_bytes<L, S + 1, 1>(of)};
        mma_bytes<SIGNED>(c, a, b[J][0], b[J][1]);
        if constexpr (K + 1 < STEPS) products<SET, K + 1>(codes, c);
    }

    // Where the sums of a row tile hold a part of a result, and whose it is: a block's threads take i = 0, 1, …, the parts of
    // a result are neighbours.
    __device__ static __forceinline__ uint32_t result(uint32_t i, uint32_t& row, uint32_t& token) {
        const uint32_t part = i % PARTS;
        row = i / PARTS % TILE_ROWS, token = i / (PARTS * TILE_ROWS);
        const uint32_t t = part % HALVES + HALVES * (token + T * (part / HALVES));
        return (row % 8 * 4 + t) * 2 + row / 8;
    }

    // This warp's Σ x² by token.
    __device__ __forceinline__ void put_squares(float* squares, int lane) {
        constexpr int TOKEN_BITS = 8 * (T - 1) * HALVES;
#pragma unroll
        for (int lanes = 1; lanes < WARP; lanes *= 2) {
            if (lanes != 4 && !(lanes & TOKEN_BITS)) square += __shfl_xor_sync(FULL, square, lanes);
        }
        if (lane % 8 == 0) squares[token_of(lane / 8)] = square;
    }
};
