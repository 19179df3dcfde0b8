// packed_skinny:  as packed_linear, for 3 to 16 tokens
//
// Bound by reading the weights up to 4 tokens, by instructions and by bringing x into order beyond. Weights come as for packed_linear:
// every warp streams its columns of a row tile through its own ring. x is in shared memory, brought into order once for all warps
// of a block, as bytes (packed_skinny_bytes.cuh) or as bf16 (packed_skinny_bf16.cuh); where that takes long two blocks, a cluster, take
// half of the columns each and send one another sums. A chunk of 16 rows × 256 columns of Q4_K takes a warp 262 instructions at 4
// tokens, 336 at 8, 490 at 16; the memory's pace leaves 610.
//
// H100, us, 8B shapes (6144×4096, 4096×4096, gate and up, 4096×14336, 128256×4096; then a layer: the first four, RoPE and attention at
// 288 tokens of context), 2026-11-25; behind them the kernel before, which had x in registers and brought it into order for every
// few row tiles:
//   4 tokens   Q4_K 10.2, 7.9, 26.6, 17.1, 106; 67 (92)    Q6_K 12.6, 9.8, 36.6, 22.2, 150; 90 (96)     Q8_0 11.4, 9.4, 43.7, 22.9, 183; 96 (106)
//   8 tokens   Q4_K 13.1, 10.3, 30.6, 21.4, 111; 83 (101)  Q6_K 14.0, 11.6, 39.2, 25.4, 151; 100 (100)  Q8_0 13.4, 11.3, 46.1, 25.6, 187; 107 (109)
//   16 tokens  Q4_K 15.1, 12.0, 35.9, 26.9, 127; 102 (133) Q6_K 17.7, 14.4, 49.7, 32.9, 178; 127 (136)  Q8_0 15.5, 13.1, 53.4, 31.8, 193; 126 (134)
// Lost, us of a layer: two blocks of 8 warps to a multiprocessor, Q4_K 74 at 4 tokens, 99 at 8; bf16 at 8 tokens 83, Q6_K 105; bytes at
// 16 would be 472 instructions a chunk, and spill. At 16 tokens, Q4_K and Q8_0: the sums of 8 warps for every row tile 110 and 143, one
// block of 8 warps 121 and 129, of 12 109 and 126, of 16 102 and 129. Clusters of four leave 12 of 132 multiprocessors idle.
#pragma once

#include "async.cuh"
#include "packed_skinny_bf16.cuh"
#include "packed_skinny_bytes.cuh"

// P: how chunks are multiplied.
//
// The blocks of a cluster divide the columns, their groups of warps the row tiles. A block finishes the results of some lanes, its
// share of each row tile, from its own sums and what the others send.
template <class P> __device__ __forceinline__ void packed_skinny(const PackedLinearParams& p) {
    using L = typename P::L;
    struct alignas(4 * P::VALUES) Values { float v[P::VALUES]; };
    constexpr int T = P::TOKENS, NT = P::NT, VALUES = P::VALUES;
    constexpr uint32_t TILE_SUMS = NT * WARP * VALUES * 4;   // bytes of a row tile's sums, of a warp or another block
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t writers = p.group_warps, group = warp / writers, w = warp % writers, groups = warps / writers;
    const uint32_t halves = p.epilogue >= SILU_MUL ? 2 : 1, per = p.pass_tiles / halves;
    const uint32_t cluster = cluster_size(), rank = cluster_rank();

    // Shared memory: rings by warp, x by chunk, sums by warp, sums from other blocks by group, Σ x² by block and warp, 1 / rms by
    // group; barriers by group: others' sums are there, others have read this block's; by block: Σ x² is there; by warp: stages.
    const uint32_t share = NT * WARP / cluster;   // lanes whose results are this block's
    const uint32_t received_bytes = (cluster - 1) * p.pass_tiles * share * sizeof(Values);
    const uint32_t ring_at = warp * p.stages * L::CHUNK, x_at = warps * p.stages * L::CHUNK, sums_at = x_at + p.slab * P::BYTES;
    const uint32_t received_at = sums_at + warps * p.pass_tiles * TILE_SUMS, squares_at = received_at + groups * received_bytes;
    const uint32_t rms_at = squares_at + cluster * warps * P::EACH * 4, barriers_at = rms_at + groups * T * 4;
    const uint32_t base = shared_address(shared), ring = base + ring_at;
    const uint32_t received = received_at + group * received_bytes, mine = sums_at + warp * p.pass_tiles * TILE_SUMS;
    const uint32_t arrived = base + barriers_at + group * 16, freed = arrived + 8, known = base + barriers_at + groups * 16;
    const uint32_t full = known + 8 + warp * p.stages * 8;
    float* squares = reinterpret_cast<float*>(shared + squares_at);
    float* rms = reinterpret_cast<float*>(shared + rms_at) + group * T;
    init_ring<L>(p, ring, full, lane);
    if (cluster > 1 && threadIdx.x % (writers * WARP) == 0) {
        barrier_init(arrived, 1), barrier_init(freed, cluster - 1);
        if (group == 0) barrier_init(known, 1), barrier_expect(known, (cluster - 1) * warps * P::EACH * 4);
    }
    barrier_init_fence();
    __syncwarp();
    if (cluster > 1) cluster_sync_arrive();

    // This group's row tiles, this block's chunks of columns, and of those this warp's: w, w + writers, ….
    const uint32_t row_tiles = (p.columns + TILE_ROWS - 1) / TILE_ROWS, all_chunks = (p.k_tiles + CHUNK_TILES - 1) / CHUNK_TILES;
    const uint32_t row_tile_bytes = p.k_tiles * L::TILE + all_chunks * L::SUPER;
    const uint32_t units = p.blocks / cluster * groups, unit = (blockIdx.x - p.first_block) / cluster * groups + group;
    const uint32_t begin = row_tiles * unit / units, end = row_tiles * (unit + 1) / units;
    const uint32_t first_chunk = all_chunks * rank / cluster, chunks = all_chunks * (rank + 1) / cluster - first_chunk;

    // The copies of this warp in order: pass, slab, row tile with gate and up by turns, chunk.
    struct { uint32_t tile, slab, rt, chunk, stage; } next = {w < chunks ? begin : end, 0, 0, w, 0};
    auto copy_next = [&] {
        if (next.tile >= end) return;
        const uint32_t tile = next.tile + (halves == 2 ? next.rt / 2 + next.rt % 2 * row_tiles : next.rt), at = (first_chunk + next.chunk) * L::CHUNK;
        warp_copy(ring + next.stage * L::CHUNK, p.data + size_t(tile) * row_tile_bytes + at, min(uint32_t(L::CHUNK), row_tile_bytes - at),
                  full + next.stage * 8, lane);
        if (++next.stage == p.stages) next.stage = 0;
        next.chunk += writers;
        while (next.chunk >= min(next.slab + p.slab, chunks)) {
            if (++next.rt == min(per, end - next.tile) * halves) {
                next.rt = 0;
                if ((next.slab += p.slab) >= chunks) {
                    next.slab = 0;
                    if ((next.tile += per) >= end) break;
                }
            }
            next.chunk = next.slab + w;
        }
    };
#pragma unroll 1
    for (uint32_t i = 0; i < p.stages; i++) copy_next();
    pdl_launch();
    pdl_wait();

    // Warps take products of a chunk in turn, each the same product of every chunk.
    float square[P::EACH] = {};
    auto prepare = [&](uint32_t slab) {
        const uint32_t count = min(p.slab, chunks - slab);
#pragma unroll 1
        for (uint32_t i = warp; i < count * NT; i += warps) {
            P::prepare(p, first_chunk + slab + i / NT, base + x_at + i / NT * P::BYTES, i % NT, lane, square);
        }
    };
    auto put_squares = [&] {
        if (!p.norm) return;
#pragma unroll
        for (int i = 0; i < P::EACH; i++) square[i] = warp_sum(square[i]);
        if (lane < cluster) {
            float4* to = reinterpret_cast<float4*>(squares + (rank * warps + warp) * P::EACH);
#pragma unroll
            for (int i = 0; i < P::EACH; i += 4) {
                const float4 v = {square[i], square[i + 1], square[i + 2], square[i + 3]};
                if (lane == rank) to[i / 4] = v;
                else cluster_store_async(in_cluster(shared_address(to + i / 4), lane), v, in_cluster(known, lane));
            }
        }
    };
    fetch_next(p);
    const bool whole = p.slab >= chunks;
    if (cluster > 1) cluster_sync_wait();   // the others' barriers are initialised
    if (whole) {
        prepare(0);
        put_squares();
        __syncthreads();
    }
    const uint32_t threads = writers * WARP, thread = w * WARP + lane;
    auto group_sync = [&] { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory"); };
    struct { uint32_t stage, parity; } take = {0, 0};
    uint32_t parity = 0;   // of passes, which are as many for every group
    const uint32_t last = begin + (row_tiles + units - 1) / units;
    for (uint32_t tile = begin; tile < last; tile += per, parity ^= 1) {
        const uint32_t tiles = tile < end ? min(per, end - tile) : 0, count = tiles * halves;
        if (tile > begin) {
            group_sync();
            if (thread < cluster && thread != rank) cluster_arrive(in_cluster(freed, thread));
        }
        if (cluster > 1 && thread == 0) barrier_expect(arrived, (cluster - 1) * count * share * sizeof(Values));
        for (uint32_t slab = 0; slab < chunks; slab += p.slab) {
            if (!whole) {
                if (slab > 0 || tile > begin) __syncthreads();
                prepare(slab);
                if (tile == begin && slab + p.slab >= chunks) put_squares();
                __syncthreads();
            }
            const uint32_t here = min(p.slab, chunks - slab);
#pragma unroll 1
            for (uint32_t rt = 0; rt < count; rt++) {
                float total[NT][VALUES] = {};
                Values* sums = reinterpret_cast<Values*>(shared + mine + rt * TILE_SUMS) + lane;
                if (slab > 0) {
#pragma unroll
                    for (int nt = 0; nt < NT; nt++) reinterpret_cast<Values&>(total[nt]) = sums[nt * WARP];
                }
#pragma unroll 1
                for (uint32_t c = w; c < here; c += writers) {
                    barrier_wait(full + take.stage * 8, take.parity);
                    P::multiply(ring + take.stage * L::CHUNK, base + x_at + c * P::BYTES, lane, total);
                    if (++take.stage == p.stages) take = {0, take.parity ^ 1};
                    __syncwarp();
                    copy_next();
                }
#pragma unroll
                for (int nt = 0; nt < NT; nt++) sums[nt * WARP] = reinterpret_cast<const Values&>(total[nt]);
            }
        }
        // Before the barrier: a warp that sends nothing must not miss the phase.
        if (cluster > 1 && tile > begin) barrier_wait(freed, parity ^ 1);
        group_sync();

        // The sums of the warps meet, in the order of columns.
        const uint32_t active = min(writers, chunks);
        constexpr uint32_t PIECES = NT * WARP;
        auto add = [&](Values& v, const uint8_t* from) {
            const Values a = *reinterpret_cast<const Values*>(from);
#pragma unroll
            for (int e = 0; e < VALUES; e++) v.v[e] += a.v[e];
        };
        auto own = [&](uint32_t rt, uint32_t piece) {
            Values v = {};
            const uint8_t* from = shared + sums_at + (warp - w) * p.pass_tiles * TILE_SUMS + rt * TILE_SUMS + piece * sizeof(Values);
#pragma unroll 4
            for (uint32_t k = 0; k < active; k++) add(v, from), from += p.pass_tiles * TILE_SUMS;
            return v;
        };
        if (cluster > 1) {
#pragma unroll 1
            for (uint32_t i = thread; i < count * PIECES; i += threads) {
                const uint32_t rt = i / PIECES, piece = i % PIECES, owner = piece / share;
                if (owner == rank) continue;
                const Values v = own(rt, piece);
                const uint32_t slot = ((rank - (rank > owner)) * p.pass_tiles + rt) * share + piece % share;
                const uint32_t to = in_cluster(base + received + slot * sizeof(Values), owner), barrier = in_cluster(arrived, owner);
                if constexpr (VALUES == 4) cluster_store_async(to, float4{v.v[0], v.v[1], v.v[2], v.v[3]}, barrier);
                else cluster_store_async(to, float2{v.v[0], v.v[1]}, barrier);
            }
            barrier_wait(arrived, parity);
        }
        if (p.norm && tile == begin) {
            if (cluster > 1) barrier_wait(known, 0);
            if (thread < T) {
                float sum = 0.0f;
                for (uint32_t k = thread / P::EACH; k < cluster * warps; k += NT) sum += squares[k * P::EACH + thread % P::EACH];
                rms[thread] = rsqrtf(sum / float(p.cols) + p.eps);
            }
            group_sync();
        }
#pragma unroll 1
        for (uint32_t i = thread; i < tiles * share; i += threads) {
            const uint32_t rt = i / share, piece = rank * share + i % share, nt = piece / WARP, from = piece % WARP;
            if (P::token_of(nt, from, 0) >= p.tokens) continue;
            auto all = [&](uint32_t half) {
                Values v = own(rt * halves + half, piece);
                const uint8_t* other = shared + received + ((rt * halves + half) * share + i % share) * sizeof(Values);
                for (uint32_t k = 1; k < cluster; k++) add(v, other), other += p.pass_tiles * share * sizeof(Values);
                return v;
            };
            const Values v = all(0), up = halves == 2 ? all(1) : Values{};
#pragma unroll
            for (int e = 0; e < VALUES; e++) {
                const uint32_t token = P::token_of(nt, from, e), column = (tile + rt) * TILE_ROWS + P::row_of(from, e);
                if (token >= p.tokens || column >= p.columns) continue;
                const float rstd = p.norm ? rms[token] : 1.0f;
                float r = v.v[e] * rstd;
                if (p.bias) r += p.bias[column];
                if (halves == 2) r = activate(r, p.epilogue) * (up.v[e] * rstd + (p.bias ? p.bias[p.columns + column] : 0.0f));
                const size_t at = size_t(token) * p.out_stride + column;
                if (p.out_f32) {
                    static_cast<float*>(p.out)[at] = r;
                } else {
                    bf16* out = static_cast<bf16*>(p.out) + at;
                    *out = from_f32<bf16>(p.epilogue == ADD ? to_f32(*out) + r : r);
                }
            }
        }
    }
}

// Which is quicker: bytes have fewer instructions up to 8 tokens, and x takes longer to bring into order.
template <class L, int T> struct SkinnyProductOf { using Type = SkinnyBytes<L, T>; };
template <class L> struct SkinnyProductOf<L, 16> { using Type = SkinnyProduct<L, 16>; };
template <class L, int T> using SkinnyOf = typename SkinnyProductOf<L, T>::Type;

#define PACKED_SKINNY_KERNEL(name, format, tokens)                                                                                     \
    extern "C" __global__ __launch_bounds__(512, 1) void packed_skinny_##name##_t##tokens(const __grid_constant__ PackedLinearParams p) { \
        packed_skinny<SkinnyOf<LayoutOf<Format::format>, tokens>>(p);                                                                   \
    }
#define PACKED_SKINNY(name, format) PACKED_SKINNY_KERNEL(name, format, 4) PACKED_SKINNY_KERNEL(name, format, 8) PACKED_SKINNY_KERNEL(name, format, 16)
