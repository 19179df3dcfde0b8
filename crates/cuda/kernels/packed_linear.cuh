// packed_linear:  out[t, r] = Σ_k x[t, k] · w[r, k] + bias[r], added to out, or act(gate) · up, for block weights, few tokens
//
// Bound by reading the weights. Every warp streams its own columns of a few row tiles of packed.cuh through its own ring in
// shared memory (bulk copies, one chunk of 16 rows × 256 columns each), so nobody waits for a neighbour before the sums
// meet. How a chunk is multiplied is a template parameter: one or two tokens on bytes (packed_int8.cuh), more as bf16, where
// codes become exact integers by one `lop3` each and go to mma.m16n8k16 as A; x is B, held in registers for a chunk of
// columns and used for all row tiles of a pass. Scales multiply the f32 sums of a group of columns; minimums and the bias of
// codes multiply Σ x of the group, which a product with ones brings in the layout of the result.
//
// H100, us at 1 token, 8B shapes (6144×4096, 4096×4096, gate and up, 4096×14336, 128256×4096; then the first four one behind the
// other, as in a layer), 2026-11-25: Q4_K on bytes 8.0, 6.0, 26.1, 14.7, 105; 54 (as bf16 13.1, 8.5, 39, 22, 146; 83). Q6_K on bytes 10.1,
// 7.5, 36, 19.4, 149; 72 (as bf16 12.5, 7.3, 42, 19.6, 156; 81). Q8_0 on bytes 10.7, 6.9, 44, 21.9, 185; 83 (as bf16 12.6, 7.5, 49, 23.1, 191; 93).
// Two blocks to a multiprocessor are quicker where row tiles are many (gate and up in Q4_K 24.8, as bf16 34). In a row of these
// kernels alone one block is, which leaves room for the next kernel's (Q4_K 54 against 55, as bf16 83 against 88), but not in a
// whole step: at 4 tokens 3.62 ms with two blocks for gate, up and head, 4.16 with two for the head only.
// Lost, us of the Q4_K layer on bytes: telling the next kernel to start only when the last copies are queued 63; the same and 6
// chunks a warp ahead into L2 65; a third of shared memory 55; all of it 59; no early start of the next kernel 64; 16 warps 69.
// Four tokens on bytes: 91, bound by bringing x into order. Row tiles unrolled, their sums in registers: 20 KB of code, 17 %
// slower. 32 tokens in registers: 470 GB/s.
#pragma once

#include "async.cuh"
#include "mma.cuh"
#include "packed.cuh"

struct PackedLinearParams {
    const bf16* x;         // [tokens, cols] bf16, rows x_stride apart
    const float* norm;     // [cols] f32: RMSNorm weight of x, or null
    const uint8_t* data;   // tiles of packed.cuh
    const float* bias;     // [rows] f32, or null
    void* out;             // [tokens, columns] bf16 or f32, rows out_stride apart
    uint32_t tokens, cols, columns;  // columns: weight rows; gated: half of them, a multiple of 16
    uint32_t x_stride, out_stride;
    uint32_t k_tiles;      // ceil(cols / 64)
    uint32_t group_warps;  // warps that share a row tile by columns; the others of a block have other row tiles
    uint32_t stages;       // of a warp's ring
    uint32_t pass_tiles;   // row tiles whose partial sums a group holds; gated: even, gate and up by turns
    uint32_t epilogue;     // Epilogue
    uint32_t out_f32;      // 1: out is f32
    uint32_t format;       // Format, for packed_linear_parts
    uint32_t first_block, blocks;  // of the launch
    float eps;
    uint32_t next_bytes;   // of `next` that this kernel fetches into L2, which is idle while few weights wait for their x
    const uint8_t* next;   // tiles of the weight that is used after this one
};

constexpr uint32_t L2_PIECE = 4096;

// Products of bf16 numbers, eights of tokens. Holds one chunk of x (256 columns) as B operands, and the sums of each group of
// columns for tokens 2t and 2t + 1 of each eight.
template <class L, int NT> struct Bf16Product {
    using Layout = L;
    static constexpr int TOKENS = 8 * NT;
    static constexpr int SUMS = 4 * NT;   // floats of a lane for a row tile
    static constexpr int PARTS = 1;       // lanes that hold parts of one result
    static constexpr int SCRATCH = 1024;  // bytes of shared memory of a warp

    float square[NT] = {};
    uint4 raw[NT][CHUNK_TILES][2];  // of the next chunk: 16 columns of token `lane / 4` in each tile
    uint32_t b[NT][16][2];
    float sums[NT][L::RAW ? CHUNK_TILES * L::GROUPS : 1][2];

    __device__ __forceinline__ void fetch(const PackedLinearParams& p, uint32_t chunk, int lane) {
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            const uint32_t token = nt * 8 + lane / 4;
#pragma unroll
            for (int tile = 0; tile < CHUNK_TILES; tile++) {
                const uint32_t col = chunk * CHUNK_COLS + tile * TILE_COLS + lane % 4 * 16;
                const bool inside = token < p.tokens && col < p.cols;
                const uint4* at = reinterpret_cast<const uint4*>(p.x + size_t(token) * p.x_stride + col);
#pragma unroll
                for (int h = 0; h < 2; h++) raw[nt][tile][h] = inside ? at[h] : uint4{0, 0, 0, 0};
            }
        }
    }

    // Of what was fetched, which is `chunk`. `scratch`: SCRATCH bytes of this warp.
    __device__ __forceinline__ void prepare(const PackedLinearParams& p, uint32_t chunk, uint32_t scratch, int lane) {
        const uint32_t token = lane / 4, part = lane % 4;
#pragma unroll
        for (int tile = 0; tile < CHUNK_TILES; tile++) {
            if (p.norm) {
                const uint32_t col = chunk * CHUNK_COLS + tile * TILE_COLS + part * 16;
                const float4* weights = reinterpret_cast<const float4*>(p.norm + (col < p.cols ? col : 0));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float4 w = weights[i];
#pragma unroll
                    for (int nt = 0; nt < NT; nt++) {
                        uint32_t* words = reinterpret_cast<uint32_t*>(&raw[nt][tile][i / 2]) + i % 2 * 2;
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const float low = __uint_as_float(words[e] << 16), high = __uint_as_float(words[e] & 0xFFFF0000u);
                            square[nt] = fmaf(low, low, fmaf(high, high, square[nt]));
                            words[e] = pack2<bf16>(low * (e ? w.z : w.x), high * (e ? w.w : w.y));
                        }
                    }
                }
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                // Eight rows of 128 bytes; 16-byte pieces are exchanged by row, so that neither side meets a bank twice.
                __syncwarp();
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const uint4 v = raw[nt][tile][h];
                    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(scratch + token * 128 + (((part * 2 + h) ^ token) << 4)),
                                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
                }
                __syncwarp();
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t r[4];
                    ldmatrix_x4(r, scratch + lane % 8 * 128 + (((half * 4 + lane / 8) ^ (lane % 8)) << 4));
                    b[nt][tile * 4 + half * 2][0] = r[0], b[nt][tile * 4 + half * 2][1] = r[1];
                    b[nt][tile * 4 + half * 2 + 1][0] = r[2], b[nt][tile * 4 + half * 2 + 1][1] = r[3];
                }
            }
        }
        if constexpr (L::RAW) {
            constexpr uint32_t ones[4] = {BF16X2_ONE, BF16X2_ONE, BF16X2_ONE, BF16X2_ONE};
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
#pragma unroll
                for (int group = 0; group < CHUNK_TILES * L::GROUPS; group++) {
                    float sum[4] = {};
#pragma unroll
                    for (int k = 0; k < L::STEPS; k++) mma_16x8x16<bf16>(sum, ones, b[nt][group * L::STEPS + k][0], b[nt][group * L::STEPS + k][1]);
                    sums[nt][group][0] = sum[0], sums[nt][group][1] = sum[1];
                }
            }
        }
    }

    __device__ __forceinline__ void tile_product(float (&acc)[NT][4], const Super<L>& super, const Codes<L>& codes,
                                                 const Scale<L>& scales, int tile) const {
#pragma unroll
        for (int group = 0; group < L::GROUPS; group++) {
            float product[NT][4] = {};
#pragma unroll
            for (int k = 0; k < L::STEPS; k++) {
                const int s = group * L::STEPS + k;
                uint32_t a[4];
                codes.template unpack<L::RAW>(s, a);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) mma_16x8x16<bf16>(product[nt], a, b[nt][tile * 4 + s][0], b[nt][tile * 4 + s][1]);
            }
            float scale[2], offset[2];
            scales.get(super, group, scale, offset);
            if constexpr (L::RAW) {
#pragma unroll
                for (int r = 0; r < 2; r++) offset[r] = fmaf(scale[r], -float(128 + L::BIAS), offset[r]);
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    acc[nt][i] = fmaf(scale[i / 2], product[nt][i], acc[nt][i]);
                    if constexpr (L::RAW) acc[nt][i] = fmaf(offset[i / 2], sums[nt][tile * L::GROUPS + group][i % 2], acc[nt][i]);
                }
            }
        }
    }

    // Adds the products of the chunk at `at` to this lane's sums of a row tile, or sets them if `first`.
    __device__ __forceinline__ void multiply(uint32_t at, int lane, float* row_tile, bool first) const {
        float acc[NT][4] = {};
        Super<L> super;
        super.load(at, lane);
        // The next tile is on its way into registers while one is multiplied.
        Codes<L> codes[2];
        Scale<L> scales[2];
        auto load = [&](int j) {
            codes[j % 2].load(at + L::SUPER + j * L::TILE, lane);
            scales[j % 2].load(at + L::SUPER + j * L::TILE, lane);
        };
        load(0);
#pragma unroll
        for (int j = 0; j < CHUNK_TILES; j++) {
            if (j + 1 < CHUNK_TILES) load(j + 1);
            tile_product(acc, super, codes[j % 2], scales[j % 2], j);
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float4& sum = reinterpret_cast<float4*>(row_tile)[nt * WARP + lane];
            const float4 old = first ? float4{0.0f, 0.0f, 0.0f, 0.0f} : sum;
            sum = {old.x + acc[nt][0], old.y + acc[nt][1], old.z + acc[nt][2], old.w + acc[nt][3]};
        }
    }

    // Where the sums of a row tile hold a result, and whose it is: a block's threads take i = 0, 1, ….
    __device__ static __forceinline__ uint32_t result(uint32_t i, uint32_t& row, uint32_t& token) {
        const uint32_t e = i % 4, from = i / 4 % WARP, nt = i / 128;
        token = nt * 8 + from % 4 * 2 + e % 2, row = from / 4 + e / 2 * 8;
        return i;
    }

    // This warp's Σ x² by token.
    __device__ __forceinline__ void put_squares(float* squares, int lane) {
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            square[nt] += __shfl_xor_sync(FULL, square[nt], 1);
            square[nt] += __shfl_xor_sync(FULL, square[nt], 2);
            if (lane % 4 == 0) squares[nt * 8 + lane / 4] = square[nt];
        }
    }
};

#include "packed_int8.cuh"

// P: how chunks are multiplied.
template <class L, class P> __device__ __forceinline__ void packed_linear(const PackedLinearParams& p) {
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t writers = p.group_warps, group = warp / writers, w = warp % writers, groups = warps / writers;
    const uint32_t halves = p.epilogue >= SILU_MUL ? 2 : 1, per = p.pass_tiles / halves;

    // Shared memory: rings, x on its way, partial sums, Σ x², barriers, all by warp.
    const uint32_t base = shared_address(shared), ring = base + warp * p.stages * L::CHUNK;
    const uint32_t partials_at = warps * (p.stages * L::CHUNK + P::SCRATCH), scratch = base + warps * p.stages * L::CHUNK + warp * P::SCRATCH;
    constexpr uint32_t TILE_SUMS = P::SUMS * WARP;
    float* partials = reinterpret_cast<float*>(shared + partials_at) + group * writers * p.pass_tiles * TILE_SUMS;
    float* mine = partials + w * p.pass_tiles * TILE_SUMS;
    float* squares = reinterpret_cast<float*>(shared + partials_at) + (warps * p.pass_tiles * TILE_SUMS + group * writers * P::TOKENS);
    const uint32_t full = base + partials_at + warps * (p.pass_tiles * TILE_SUMS + P::TOKENS) * 4 + warp * p.stages * 8;
    if (p.k_tiles % CHUNK_TILES != 0) {
        // The last chunk is copied in part and multiplied whole, by zeros: nothing in its place may be a NaN.
#pragma unroll 1
        for (uint32_t i = lane * 16; i < p.stages * L::CHUNK; i += WARP * 16)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(ring + i), "r"(0) : "memory");
    }
    if (lane == 0) {
#pragma unroll 1
        for (uint32_t i = 0; i < p.stages; i++) barrier_init(full + i * 8, WARP_COPY_ARRIVALS);
    }
    barrier_init_fence();
    __syncwarp();

    // This group's row tiles, and this warp's chunks of columns: w, w + writers, ….
    const uint32_t row_tiles = (p.columns + TILE_ROWS - 1) / TILE_ROWS, chunks = (p.k_tiles + CHUNK_TILES - 1) / CHUNK_TILES;
    const uint32_t row_tile_bytes = p.k_tiles * L::TILE + chunks * L::SUPER;
    const uint32_t units = p.blocks * groups, unit = (blockIdx.x - p.first_block) * groups + group;
    const uint32_t begin = row_tiles * unit / units, end = row_tiles * (unit + 1) / units;

    // The copies of this warp in order: pass, chunk, row tile, gate or up.
    struct { uint32_t tile, chunk, rt, stage; } next = {w < chunks ? begin : end, w, 0, 0};
    auto copy_next = [&] {
        if (next.tile >= end) return;
        const uint32_t tile = next.tile + (halves == 2 ? next.rt / 2 + next.rt % 2 * row_tiles : next.rt), at = next.chunk * L::CHUNK;
        warp_copy(ring + next.stage * L::CHUNK, p.data + size_t(tile) * row_tile_bytes + at, min(uint32_t(L::CHUNK), row_tile_bytes - at),
                  full + next.stage * 8, lane);
        if (++next.stage == p.stages) next.stage = 0;
        if (++next.rt < min(per, end - next.tile) * halves) return;
        next.rt = 0;
        if ((next.chunk += writers) < chunks) return;
        next.chunk = w, next.tile += per;
    };
#pragma unroll 1
    for (uint32_t i = 0; i < p.stages; i++) copy_next();
    pdl_launch();
    pdl_wait();

    P x;
    struct { uint32_t stage, parity; } take = {0, 0};
    const uint32_t threads = writers * WARP, thread = w * WARP + lane;
    if (w < chunks) x.fetch(p, w, lane);
    for (uint32_t at = (blockIdx.x + threadIdx.x * gridDim.x) * L2_PIECE; at < p.next_bytes; at += gridDim.x * blockDim.x * L2_PIECE)
        prefetch_l2(p.next + at, min(L2_PIECE, p.next_bytes - at));
    for (uint32_t tile = begin; tile < end; tile += per) {
        const uint32_t count = min(per, end - tile) * halves;
        if (tile > begin) asm volatile("bar.sync %0, %1;" ::"r"(group), "r"(threads) : "memory");
        for (uint32_t chunk = w; chunk < chunks; chunk += writers) {
            // One chunk a warp stays where it is.
            if (chunks > writers || tile == begin) {
                x.prepare(p, chunk, scratch, lane);
                if (chunks > writers) x.fetch(p, chunk + writers < chunks ? chunk + writers : w, lane);
            }
#pragma unroll 1
            for (uint32_t rt = 0; rt < count; rt++) {
                const uint32_t at = ring + take.stage * L::CHUNK;
                barrier_wait(full + take.stage * 8, take.parity);
                x.multiply(at, lane, mine + rt * TILE_SUMS, chunk == w);
                if (++take.stage == p.stages) take = {0, take.parity ^ 1};
                __syncwarp();
                copy_next();
            }
        }

        // The warps' sums meet, in the order of columns.
        if (p.norm && tile == begin) x.put_squares(squares + w * P::TOKENS, lane);
        asm volatile("bar.sync %0, %1;" ::"r"(group), "r"(threads) : "memory");
        const uint32_t active = min(writers, chunks);
        constexpr uint32_t RESULTS = P::TOKENS * TILE_ROWS * P::PARTS;
#pragma unroll 1
        for (uint32_t i = thread; i < count / halves * RESULTS; i += threads) {
            uint32_t token, row;
            const uint32_t rt = i / RESULTS, in_tile = P::result(i % RESULTS, row, token), column = (tile + rt) * TILE_ROWS + row;
            float v = 0.0f, up = 0.0f, total = 0.0f;
            const float* of_warp = partials + rt * halves * TILE_SUMS + in_tile;
#pragma unroll 4
            for (uint32_t k = 0; k < active; k++) {
                v += of_warp[0];
                if (halves == 2) up += of_warp[TILE_SUMS];
                if (p.norm) total += squares[k * P::TOKENS + token];
                of_warp += p.pass_tiles * TILE_SUMS;
            }
#pragma unroll
            for (int lanes = 1; lanes < P::PARTS; lanes *= 2) {
                v += __shfl_xor_sync(FULL, v, lanes);
                up += __shfl_xor_sync(FULL, up, lanes);
            }
            if (token >= p.tokens || column >= p.columns || i % P::PARTS != 0) continue;
            if (p.norm) {
                const float rstd = rsqrtf(total / float(p.cols) + p.eps);
                v *= rstd, up *= rstd;
            }
            if (p.bias) v += p.bias[column];
            if (halves == 2) v = activate(v, p.epilogue) * (p.bias ? up + p.bias[p.columns + column] : up);
            const size_t at = size_t(token) * p.out_stride + column;
            if (p.out_f32) {
                static_cast<float*>(p.out)[at] = v;
            } else {
                bf16* out = static_cast<bf16*>(p.out) + at;
                *out = from_f32<bf16>(p.epilogue == ADD ? to_f32(*out) + v : v);
            }
        }
    }
}

#define PACKED_LINEAR_KERNEL(name, product, threads, blocks)                                                                    \
    extern "C" __global__ __launch_bounds__(threads, blocks) void packed_linear_##name(const __grid_constant__ PackedLinearParams p) { \
        packed_linear<product::Layout, product>(p);                                                                             \
    }
#define PACKED_LINEAR(name, format)                                              \
    using name##_t1 = Int8Product<LayoutOf<Format::format>, 1>;                  \
    using name##_t2 = Int8Product<LayoutOf<Format::format>, 2>;                  \
    using name##_t8 = Bf16Product<LayoutOf<Format::format>, 1>;                  \
    using name##_t16 = Bf16Product<LayoutOf<Format::format>, 2>;                 \
    PACKED_LINEAR_KERNEL(name##_t1, name##_t1, 512, 1)                           \
    PACKED_LINEAR_KERNEL(name##_t2, name##_t2, 512, 1)                           \
    PACKED_LINEAR_KERNEL(name##_t8, name##_t8, 256, 2)                           \
    PACKED_LINEAR_KERNEL(name##_t16, name##_t16, 256, 1)
