// packed_linear:  out[t, r] = Σ_k x[t, k] · w[r, k] + bias[r], added to out, or act(gate) · up, for block weights, few tokens
//
// Bound by reading the weights. Every warp streams its own columns of a few row tiles of packed.cuh through its own ring in
// shared memory (bulk copies, one chunk of 16 rows × 256 columns each), so nobody waits for a neighbour before the sums
// meet. One and two tokens; x is on bytes, in registers for a chunk of columns and used for all row tiles of a pass
// (packed_int8.cuh).
//
// H100, us at 1 token, 8B shapes (6144×4096, 4096×4096, gate and up, 4096×14336; then a layer: these, RoPE and attention at 288 tokens
// of context, one behind the other), 2026-11-25, blocks of 16 warps: Q4_K 7.3, 5.4, 23.5, 13.5; 55.5. Q6_K 8.6, 7.2, 34.2, 18.0; 74.5. Q8_0
// 9.1, 7.4, 40.9, 20.7; 85. As bf16 in blocks of 8 warps the first four were 13.1, 8.5, 39, 22 in Q4_K.
// Lost, us of the Q4_K layer: 132 blocks of 8 warps and half of the shared memory, of which some multiprocessors get two behind a kernel
// of 264 and others none, 65; two such blocks on each multiprocessor 61; all of the shared memory 57, 200 KB 57; sums of 16 row tiles to
// a pass 56.4; a preferred carveout the same. The next weights into L2 also from the large ones: 57 with those for qkv, 57 with
// those for down. Row tiles unrolled, their sums in registers: 20 KB of code, 17 % slower.
#pragma once

#include "async.cuh"
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
    uint32_t slab;         // packed_skinny: chunks of x in shared memory at once
    uint32_t epilogue;     // Epilogue
    uint32_t out_f32;      // 1: out is f32
    uint32_t format;       // Format, for packed_linear_parts
    uint32_t first_block, blocks;  // of the launch
    float eps;
    uint32_t next_bytes;   // of `next` that this kernel fetches into L2, which is idle while few weights wait for their x
    const uint8_t* next;   // tiles of the weight that is used after this one
};

// Called by all threads of a launch.
__device__ __forceinline__ void fetch_next(const PackedLinearParams& p) {
    constexpr uint32_t PIECE = 4096;
    for (uint32_t at = (blockIdx.x + threadIdx.x * gridDim.x) * PIECE; at < p.next_bytes; at += gridDim.x * blockDim.x * PIECE)
        prefetch_l2(p.next + at, min(PIECE, p.next_bytes - at));
}

// Makes the ring of a warp, chunks at `ring` and their barriers at `full`, ready for copies behind a `barrier_init_fence`.
template <class L> __device__ __forceinline__ void init_ring(const PackedLinearParams& p, uint32_t ring, uint32_t full, uint32_t lane) {
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
}

#include "packed_int8.cuh"

// P: how chunks are multiplied.
template <class L, class P> __device__ __forceinline__ void packed_linear(const PackedLinearParams& p) {
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t writers = p.group_warps, group = warp / writers, w = warp % writers, groups = warps / writers;
    const uint32_t halves = p.epilogue >= SILU_MUL ? 2 : 1, per = p.pass_tiles / halves;

    // Shared memory: rings, partial sums, Σ x², barriers, all by warp.
    const uint32_t base = shared_address(shared), ring = base + warp * p.stages * L::CHUNK;
    const uint32_t partials_at = warps * p.stages * L::CHUNK;
    constexpr uint32_t TILE_SUMS = P::SUMS * WARP;
    float* partials = reinterpret_cast<float*>(shared + partials_at) + group * writers * p.pass_tiles * TILE_SUMS;
    float* mine = partials + w * p.pass_tiles * TILE_SUMS;
    float* squares = reinterpret_cast<float*>(shared + partials_at) + (warps * p.pass_tiles * TILE_SUMS + group * writers * P::TOKENS);
    const uint32_t full = base + partials_at + warps * (p.pass_tiles * TILE_SUMS + P::TOKENS) * 4 + warp * p.stages * 8;
    init_ring<L>(p, ring, full, lane);
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
    fetch_next(p);
    for (uint32_t tile = begin; tile < end; tile += per) {
        const uint32_t count = min(per, end - tile) * halves;
        if (tile > begin) asm volatile("bar.sync %0, %1;" ::"r"(group), "r"(threads) : "memory");
        for (uint32_t chunk = w; chunk < chunks; chunk += writers) {
            // One chunk a warp stays where it is.
            if (chunks > writers || tile == begin) {
                x.prepare(p, chunk, lane);
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

#define PACKED_LINEAR_KERNEL(name, format, tokens)                                                                                     \
    extern "C" __global__ __launch_bounds__(512, 1) void packed_linear_##name##_t##tokens(const __grid_constant__ PackedLinearParams p) { \
        packed_linear<LayoutOf<Format::format>, Int8Product<LayoutOf<Format::format>, tokens>>(p);                                      \
    }
#define PACKED_LINEAR(name, format) PACKED_LINEAR_KERNEL(name, format, 1) PACKED_LINEAR_KERNEL(name, format, 2)
