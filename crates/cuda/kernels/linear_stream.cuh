// Dense linear for 1 … 16 tokens, weights and x both BF16 or both F16: weights streamed once through shared memory, mma.m16n8k16.
#pragma once
#include "hopper.cuh"
#include "linear_dense.cuh"
#include "mma.cuh"

namespace linear_dense {

struct LinearStreamParams {
    CUtensorMap weight;      // [cols / 64, rows, 64] view of row-major [rows, cols]; box CHUNKS × 8 × 64, 128-byte swizzle
    const void* x;           // [tokens, cols], rows `x_stride` elements apart, 16-byte aligned
    const float* norm;       // [cols] f32: weight of an RMSNorm of x; read by the *_norm kernels only
    float eps;
    int cols;                // a multiple of 64
    int x_stride;            // a multiple of 8
    Output output;
};

__device__ __forceinline__ uint4 lds128(uint32_t addr) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(addr));
    return v;
}

// x · g for 8 columns, and their squares added to `squares`.
__device__ __forceinline__ uint4 scale8(uint4 v, const float4 (&g)[2], float& squares) {
    auto scale = [&](uint32_t pair, float g0, float g1) {
        float2 f = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&pair));
        squares += f.x * f.x + f.y * f.y;
        __nv_bfloat162 s = __floats2bfloat162_rn(f.x * g0, f.y * g1);
        return *reinterpret_cast<uint32_t*>(&s);
    };
    return {scale(v.x, g[0].x, g[0].y), scale(v.y, g[0].z, g[0].w), scale(v.z, g[1].x, g[1].y), scale(v.w, g[1].z, g[1].w)};
}

// A stage holds UNITS × 8 weight rows of CHUNKS × 64 columns. KW of the eight warps split the chunks, the others the rows.
template <int TOKEN_TILES, int UNITS, int CHUNKS, int KW, int STAGES>
struct StreamTile {
    static constexpr int WARPS = 8;
    static constexpr int MW = WARPS / KW;
    static constexpr int M_TILES = (UNITS + 1) / 2;  // m16 tiles of a stage
    static constexpr int WARP_TILES = M_TILES / MW;
    static constexpr int WARP_CHUNKS = CHUNKS / KW;
    static constexpr int STAGE_BYTES = UNITS * CHUNKS * 1024;
    static constexpr int RED = M_TILES * TOKEN_TILES * 128;  // f32 of the partial sums of one K part
    static constexpr int THREADS = WARPS * 32 + 32;
    static constexpr int SMEM = 1024 + STAGES * STAGE_BYTES + 2 * KW * RED * 4 + KW * TOKEN_TILES * 8 * 4;
    static_assert(M_TILES % MW == 0 && CHUNKS % KW == 0, "warps share evenly");
    static_assert(UNITS == 1 || UNITS % 2 == 0, "m16 tiles; eight rows fill half of one");
};

// T: the element type of weights and x.
template <class T, int TOKEN_TILES, int UNITS, int CHUNKS, int KW, int STAGES, bool NORM>
__device__ __forceinline__ void linear_stream(const LinearStreamParams& p) {
    using namespace hopper;
    using Tile = StreamTile<TOKEN_TILES, UNITS, CHUNKS, KW, STAGES>;
    extern __shared__ __align__(128) uint8_t smem_raw[];
    __shared__ alignas(8) uint64_t full_bars[STAGES], empty_bars[STAGES];
    const uint32_t smem = (smem_u32(smem_raw) + 1023) & ~1023u;
    const uint32_t full = smem_u32(full_bars), empty = smem_u32(empty_bars);
    float* red = reinterpret_cast<float*>(smem_raw + (smem - smem_u32(smem_raw)) + STAGES * Tile::STAGE_BYTES);
    float* red_squares = red + 2 * KW * Tile::RED;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Output& o = p.output;
    const bool gated = is_gated(o.epilogue);
    // This CTA's columns of the output: an even share in units of 8. Gated: unit 2i of a stage is gates, 2i + 1 their ups.
    const int units = (o.columns + 7) / 8;
    const int first = static_cast<int>(static_cast<int64_t>(units) * blockIdx.x / gridDim.x) * 8;
    const int last = min(o.columns, static_cast<int>(static_cast<int64_t>(units) * (blockIdx.x + 1) / gridDim.x) * 8);
    const int step = gated ? UNITS * 4 : UNITS * 8;
    const int chunks = p.cols / 64;
    const int stages_per_slab = (chunks + CHUNKS - 1) / CHUNKS;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) mbar_init(full + 8 * s, 1), mbar_init(empty + 8 * s, Tile::WARPS);
        mbar_fence_init();
    }
    __syncthreads();

    if (warp == Tile::WARPS) {  // producer: one lane per unit. Weights are constant: nothing to wait for
        int slot = 0, use = 0;
        for (int slab = first; slab < last; slab += step) {
            const int column = slab + (gated ? lane / 2 : lane) * 8;
            const bool valid = lane < UNITS && column < last;
            const int row = column + (gated && lane % 2 ? o.columns : 0);
            const int bytes = __popc(__ballot_sync(~0u, valid)) * CHUNKS * 1024;
            for (int c = 0; c < chunks; c += CHUNKS) {
                if (use > 0) mbar_wait(empty + 8 * slot, (use - 1) & 1);
                if (lane == 0) mbar_expect(full + 8 * slot, bytes);
                __syncwarp();
                if (valid)
                    tensor_load(smem + slot * Tile::STAGE_BYTES + lane * CHUNKS * 1024, &p.weight, 0, row, c, full + 8 * slot, EVICT_FIRST);
                if (++slot == STAGES) slot = 0, use++;
            }
        }
        return;
    }

    // Two 16-byte loads make the operands of four k16 steps: thread q of a quad takes 16-byte chunks 2q and 2q + 1 of a
    // row's 64 columns, of weights and of x alike, so that the sum runs over a permutation of k; in the 128-byte swizzle
    // eight such loads of two rows meet no bank twice.
    const int quad = lane % 4, group = lane / 4, kw = warp % KW, mw = warp / KW;
    constexpr int C = Tile::WARP_CHUNKS, M = Tile::WARP_TILES;
    constexpr int RESULTS = (UNITS * 64 * TOKEN_TILES + Tile::WARPS * 32 - 1) / (Tile::WARPS * 32);  // of a thread and slab
    const int results = step * TOKEN_TILES * 8;
    struct Operand {  // of one stage: x, and the norm's weight for it
        uint4 x[C][TOKEN_TILES][2];
        float4 g[C][2][2];
    };
    auto column_in_slab = [&](int i) { return gated ? i % (UNITS * 4) : i % (UNITS * 8); };
    auto token_of = [&](int i) { return gated ? i / (UNITS * 4) : i / (UNITS * 8); };
    auto column_of = [&](int s, int c) { return (s * CHUNKS + c * KW + kw) * 64; };
    auto load_norm = [&](Operand& b, int s) {
#pragma unroll
        for (int c = 0; c < C; c++) {
            if (!NORM) continue;
            const int k = column_of(s, c);
            const float4* src = reinterpret_cast<const float4*>(p.norm + k) + 4 * quad;
#pragma unroll
            for (int i = 0; i < 4; i++) b.g[c][i / 2][i % 2] = k < p.cols ? src[i] : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
    };
    auto load_x = [&](Operand& b, int s) {
#pragma unroll
        for (int c = 0; c < C; c++)
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) {
                const int token = n * 8 + group, k = column_of(s, c);
                const uint4* src = reinterpret_cast<const uint4*>(static_cast<const T*>(p.x) + static_cast<size_t>(token) * p.x_stride + k) + 2 * quad;
                const bool valid = token < o.tokens && k < p.cols;
                b.x[c][n][0] = valid ? src[0] : uint4{0, 0, 0, 0};
                b.x[c][n][1] = valid ? src[1] : uint4{0, 0, 0, 0};
            }
    };

    float acc[M][TOKEN_TILES][4], squares[TOKEN_TILES] = {};
    float old[RESULTS] = {};  // what ADD adds to
    int slot = 0, phase = 0, buffer = 0, slab = first, s = 0;
    // The next stage of the ring, whose operand was asked for two stages ago.
    auto stage = [&](Operand& operand) {
        if (s == 0) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < TOKEN_TILES; n++) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0.0f;
            if (o.epilogue == ADD) {
#pragma unroll
                for (int r = 0; r < RESULTS; r++) {
                    const int i = threadIdx.x + r * Tile::WARPS * 32, c = column_in_slab(i), token = token_of(i);
                    if (i < results && slab + c < last && token < o.tokens)
                        old[r] = __bfloat162float(static_cast<const __nv_bfloat16*>(o.out)[static_cast<size_t>(token) * o.stride + slab + c]);
                }
            }
        }
        uint4 b[C][TOKEN_TILES][2];
#pragma unroll
        for (int c = 0; c < C; c++)
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) b[c][n][h] = NORM ? scale8(operand.x[c][n][h], operand.g[c][h], squares[n]) : operand.x[c][n][h];
        int ahead = s + 2;
        while (ahead >= stages_per_slab) ahead -= stages_per_slab;
        load_x(operand, ahead), load_norm(operand, ahead);

        mbar_wait(full + 8 * slot, phase);
        const uint32_t base = smem + slot * Tile::STAGE_BYTES + group * 128;
#pragma unroll
        for (int c = 0; c < C; c++)
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int unit = 2 * (mw * M + m);
                    const uint32_t at = base + (unit * CHUNKS + c * KW + kw) * 1024 + (((2 * quad + h) ^ group) << 4);
                    const uint4 lo = lds128(at), hi = UNITS == 1 ? uint4{0, 0, 0, 0} : lds128(at + CHUNKS * 1024);
#pragma unroll
                    for (int n = 0; n < TOKEN_TILES; n++) {
                        mma_16x8x16<T>(acc[m][n], {lo.x, hi.x, lo.y, hi.y}, b[c][n][h].x, b[c][n][h].y);
                        mma_16x8x16<T>(acc[m][n], {lo.z, hi.z, lo.w, hi.w}, b[c][n][h].z, b[c][n][h].w);
                    }
                }
        __syncwarp();
        if (lane == 0) mbar_arrive(empty + 8 * slot);
        if (++slot == STAGES) slot = 0, phase ^= 1;
        if (++s < stages_per_slab) return;

        // The slab is done: partial sums meet, and every thread finishes RESULTS of its results.
        float* mine = red + (buffer * KW + kw) * Tile::RED + mw * M * TOKEN_TILES * 128 + lane;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) mine[((m * TOKEN_TILES + n) * 4 + i) * 32] = acc[m][n][i];
        if (NORM && slab == first && mw == 0) {
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++) {
                squares[n] += __shfl_xor_sync(~0u, squares[n], 1);
                squares[n] += __shfl_xor_sync(~0u, squares[n], 2);
                if (quad == 0) red_squares[kw * TOKEN_TILES * 8 + n * 8 + group] = squares[n];
            }
        }
        named_barrier(1, Tile::WARPS * 32);
        const float* all = red + buffer * KW * Tile::RED;
#pragma unroll
        for (int r = 0; r < RESULTS; r++) {
            const int i = threadIdx.x + r * Tile::WARPS * 32, c = column_in_slab(i), token = token_of(i);
            if (i >= results || slab + c >= last || token >= o.tokens) continue;
            const int row = gated ? c / 8 * 16 + c % 8 : c;  // of the stage
            const int at = (((row / 16) * TOKEN_TILES + token / 8) * 4 + (row % 16 >= 8 ? 2 : 0) + token % 2) * 32 + (row % 8) * 4 + token % 8 / 2;
            float sum = 0.0f, up = 0.0f, rms = 0.0f;
#pragma unroll
            for (int w = 0; w < KW; w++) {
                sum += all[w * Tile::RED + at];
                if (gated) up += all[w * Tile::RED + at + 64];
                if (NORM) rms += red_squares[w * TOKEN_TILES * 8 + token];
            }
            if (NORM) {
                const float scale = rsqrtf(__fdividef(rms, p.cols) + p.eps);
                sum *= scale, up *= scale;
            }
            emit(o, token, slab + c, sum, up, old[r]);
        }
        s = 0, slab += step, buffer ^= 1;
    };

    Operand even, odd;
    load_norm(even, 0), load_norm(odd, stages_per_slab > 1 ? 1 : 0);
    pdl_wait();
    if (threadIdx.x == 0) pdl_launch();
    load_x(even, 0), load_x(odd, stages_per_slab > 1 ? 1 : 0);
    while (slab < last) {
        stage(even);
        if (slab < last) stage(odd);
    }
}

}  // namespace linear_dense
