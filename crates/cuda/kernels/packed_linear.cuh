// out (+)= x · wᵀ + bias, or act(gate) · up, for packed block weights and 1 to 16 tokens; x may be normed first.
//
// Every warp owns 256 columns, whose x it holds in registers as B operands, and streams row tiles of 16 rows × its columns
// through a ring of its own in shared memory (bulk copies, started before the kernel in front has ended). Codes become exact
// integers in bf16 and go to mma.m16n8k16 as A; scales multiply the f32 sums of a group of columns, and minimums and the
// bias of codes multiply Σ x of the group. The warps' sums of a row tile meet in shared memory, where warps of their own add
// them in the order of columns; for more columns than a block's warps have, in a cluster. RMSNorm's factor 1 / rms is a
// factor of a token's results: only Σ x² is needed, and only at the end.
//
// Bound by memory for Q8_0, by the instructions of unpacking for 4 bits. H100, 1 token, 2026-11-25, GB/s of file bytes:
//           6144×4096   4096×4096   28672×4096 gated   4096×14336   128256×4096
//   Q4_K    948         912         1702               709          1990
//   Q6_K    1185        1135        2164               945          2538
//   Q8_0    1673        1489        2657               1454         2827
// Lost: `mbarrier.arrive.release.cluster` (a fence over the GPU: 1 µs a row tile and warp); warps that both multiply and
// reduce (Q4_K head 1488); two blocks of 64 registers on a multiprocessor (706).
#pragma once

#include "async.cuh"
#include "mma.cuh"
#include "packed.cuh"

struct PackedLinearParams {
    const bf16* x;          // [tokens, cols] bf16, rows x_stride apart
    const float* norm;      // [cols] f32: RMSNorm weight of x, or null
    const uint8_t* data;    // tiles of packed.cuh
    const float* bias;      // [rows] f32, or null
    void* out;              // [tokens, columns] bf16 or f32, rows out_stride apart
    uint32_t tokens, cols, columns;   // columns: weight rows; gated: half of them, a multiple of 16
    uint32_t x_stride, out_stride;
    uint32_t k_tiles;       // ceil(cols / 64)
    uint32_t group_warps;   // warps that share a row tile by columns
    uint32_t groups;        // row tiles at a time in a cluster: groups · group_warps <= WARPS
    uint32_t stages;        // of a warp's ring
    uint32_t slots;         // row tiles whose partial sums a block can hold
    uint32_t scratch;       // byte offset in shared memory: 1 KiB · NT a warp for x on its way
    uint32_t epilogue;      // Epilogue
    uint32_t out_f32;       // 1: out is f32
    float eps;
};

__device__ __forceinline__ void sts128(uint32_t at, float4 v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// One chunk of x (256 columns) as B operands in registers, with the sums of each group of columns in shared memory.
template <class L, int NT> struct Activations {
    uint32_t b[NT][16][2];

    // `sums`: [NT][4·GROUPS][8 tokens] f32. Returns this lane's part of Σ x² for token `lane / 4` of each eight.
    __device__ __forceinline__ void load(const PackedLinearParams& p, uint32_t chunk, uint32_t scratch, uint32_t sums, int lane,
                                         float (&square)[NT]) {
        const int token = lane / 4, part = lane % 4;
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            square[nt] = 0.0f;
            const uint32_t at = nt * 8 + token;
            const bf16* row = p.x + size_t(at) * p.x_stride;
#pragma unroll
            for (int tile = 0; tile < CHUNK_TILES; tile++) {
                const uint32_t col = chunk * CHUNK_COLS + tile * TILE_COLS + part * 16;
                uint4 v[2] = {};
                if (at < p.tokens && col < p.cols) {
                    v[0] = *reinterpret_cast<const uint4*>(row + col);
                    v[1] = *reinterpret_cast<const uint4*>(row + col + 8);
                    if (p.norm) {
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            uint32_t* word = reinterpret_cast<uint32_t*>(&v[h]);
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                const float2 w = *reinterpret_cast<const float2*>(p.norm + col + h * 8 + i * 2);
                                const float low = __uint_as_float(word[i] << 16), high = __uint_as_float(word[i] & 0xFFFF0000u);
                                square[nt] = fmaf(low, low, fmaf(high, high, square[nt]));
                                word[i] = pack2<bf16>(low * w.x, high * w.y);
                            }
                        }
                    }
                }
                // Eight rows of 128 bytes; 16-byte pieces are exchanged by row, so that neither side meets a bank twice.
                __syncwarp();
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const uint32_t to = scratch + token * 128 + (((part * 2 + h) ^ token) << 4);
                    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v[h].x), "r"(v[h].y), "r"(v[h].z), "r"(v[h].w) : "memory");
                }
                __syncwarp();
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t r[4];
                    const int row8 = lane % 8, piece = half * 4 + lane / 8;
                    ldmatrix_x4(r, scratch + row8 * 128 + ((piece ^ row8) << 4));
                    b[nt][tile * 4 + half * 2][0] = r[0], b[nt][tile * 4 + half * 2][1] = r[1];
                    b[nt][tile * 4 + half * 2 + 1][0] = r[2], b[nt][tile * 4 + half * 2 + 1][1] = r[3];
                }
            }
            if constexpr (L::RAW) {
                constexpr uint32_t ones[4] = {BF16X2_ONE, BF16X2_ONE, BF16X2_ONE, BF16X2_ONE};
#pragma unroll
                for (int group = 0; group < CHUNK_TILES * L::GROUPS; group++) {
                    float sum[4] = {};
#pragma unroll
                    for (int k = 0; k < L::STEPS; k++) mma_16x8x16<bf16>(sum, ones, b[nt][group * L::STEPS + k][0], b[nt][group * L::STEPS + k][1]);
                    if (lane < 4) {
                        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(sums + (nt * CHUNK_TILES * L::GROUPS + group) * 32 + lane * 8), "f"(sum[0]), "f"(sum[1]) : "memory");
                    }
                }
                __syncwarp();
            }
        }
    }
};

template <class L, int NT>
__device__ __forceinline__ void tile_product(float (&acc)[NT][4], const Activations<L, NT>& x, const Super<L>& super, uint32_t at,
                                             uint32_t sums, int tile, int lane) {
    Codes<L> codes;
    Scale<L> scales;
    codes.load(at, lane);
    scales.load(at, lane);
#pragma unroll
    for (int group = 0; group < L::GROUPS; group++) {
        float product[NT][4] = {};
#pragma unroll
        for (int k = 0; k < L::STEPS; k++) {
            const int s = group * L::STEPS + k;
            uint32_t a[4];
            codes.template unpack<L::RAW>(s, a);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) mma_16x8x16<bf16>(product[nt], a, x.b[nt][tile * 4 + s][0], x.b[nt][tile * 4 + s][1]);
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
            for (int i = 0; i < 4; i++) acc[nt][i] = fmaf(scale[i / 2], product[nt][i], acc[nt][i]);
            if constexpr (L::RAW) {
                const uint2 v = lds64(sums + ((nt * CHUNK_TILES + tile) * L::GROUPS + group) * 32 + (lane % 4) * 8);
                const float sum[2] = {__uint_as_float(v.x), __uint_as_float(v.y)};
#pragma unroll
                for (int i = 0; i < 4; i++) acc[nt][i] = fmaf(offset[i / 2], sum[i % 2], acc[nt][i]);
            }
        }
    }
}

// Warps that only add up partial sums: a warp that did both would hold up the next row tile.
constexpr int REDUCERS = 2;

// ST: tiles of a stage. NT: eights of tokens. WARPS: those that multiply.
template <Format F, int ST, int NT, int WARPS>
__device__ __forceinline__ void packed_linear(const PackedLinearParams& p) {
    using L = LayoutOf<F>;
    constexpr int STAGE = L::SUPER + ST * L::TILE;
    constexpr int SUMS = L::RAW ? NT * CHUNK_TILES * L::GROUPS * 32 : 0;
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t S = cluster_size(), rank = cluster_rank();
    const uint32_t G = p.group_warps, group = warp / G, kw = warp % G;
    const uint32_t writers = S * G, writer = rank * G + kw;   // of a row tile; this warp among them
    const bool active = warp < WARPS && group < p.groups, gated = p.epilogue >= SILU_MUL;
    const uint32_t halves = gated ? 2 : 1, partial_bytes = halves * NT * 512;

    // Shared memory: rings, partial sums, sums of x, Σ x² by writer, barriers.
    const uint32_t base = shared_address(shared);
    const uint32_t ring = base + warp * p.stages * STAGE;
    const uint32_t partials = base + WARPS * p.stages * STAGE;
    const uint32_t all_sums = partials + p.groups * p.slots * writers * partial_bytes, sums = all_sums + warp * SUMS;
    const uint32_t squares = all_sums + WARPS * SUMS;
    const uint32_t barriers = squares + p.groups * writers * NT * 32;
    const uint32_t full = barriers + warp * p.stages * 8;
    const uint32_t written = barriers + (WARPS * p.stages + group * p.slots * (1 + S)) * 8;   // [slots], of this block's slots
    const uint32_t taken = written + p.slots * 8;                                            // [S][slots], of all blocks' slots
    if (lane == 0 && active) {
        for (uint32_t i = 0; i < p.stages; i++) barrier_init(full + i * 8, WARP_COPY_ARRIVALS);
        if (kw == 0) {
            for (uint32_t i = 0; i < p.slots; i++) barrier_init(written + i * 8, S > 1 ? 1 : writers);
            for (uint32_t i = 0; i < p.slots * S; i++) barrier_init(taken + i * 8, 1);
        }
        barrier_init_fence();
    }
    __syncwarp();
    if (S > 1) cluster_sync_arrive();

    // The row tiles of a group, and this warp's chunks of columns: writer, writer + writers, ….
    const uint32_t row_tiles = (p.columns + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t units = gridDim.x / S * p.groups, unit = blockIdx.x / S * p.groups;
    auto first_tile = [&](uint32_t group) { return uint32_t(uint64_t(row_tiles) * (unit + group) / units); };
    const uint32_t begin = active ? first_tile(group) : 0, end = active ? first_tile(group + 1) : 0;
    const uint32_t chunks = (p.k_tiles + CHUNK_TILES - 1) / CHUNK_TILES;
    const uint32_t passes = active && writer < chunks ? (chunks - writer + writers - 1) / writers : 0;
    const uint32_t row_tile_bytes = p.k_tiles * L::TILE + chunks * L::SUPER;
    auto tiles_of = [&](uint32_t chunk) { return min(uint32_t(CHUNK_TILES), p.k_tiles - chunk * CHUNK_TILES); };

    // The copies of this warp in order: row tile, gate or up, chunk, stage.
    struct { uint32_t tile, half, pass, stage, fill; } next = {passes ? begin : end, 0, 0, 0, 0};
    auto copy_next = [&] {
        if (next.tile == end) return;
        const uint32_t chunk = writer + next.pass * writers, tiles = tiles_of(chunk);
        const uint8_t* src = p.data + size_t(next.tile + next.half * row_tiles) * row_tile_bytes + chunk * L::CHUNK;
        uint32_t bytes = min(uint32_t(ST), tiles - next.stage * ST) * L::TILE;
        if (next.stage == 0) {
            bytes += L::SUPER;
        } else {
            src += L::SUPER + next.stage * ST * L::TILE;
        }
        warp_copy(ring + next.fill * STAGE, src, bytes, full + next.fill * 8, lane);
        if (++next.fill == p.stages) next.fill = 0;
        if (++next.stage * ST < tiles) return;
        next.stage = 0;
        if (++next.pass < passes) return;
        next.pass = 0;
        if (++next.half < halves) return;
        next.half = 0;
        next.tile++;
    };
    for (uint32_t i = 0; i < p.stages; i++) copy_next();
    pdl_launch();
    pdl_wait();

    Activations<L, NT> x;
    float square[NT] = {};
    const uint32_t scratch = base + p.scratch + warp * NT * 1024;
    if (active) x.load(p, writer, scratch, sums, lane, square);
    // The other blocks run, and their barriers are seen.
    if (S > 1) cluster_sync_wait();
    if (p.norm && active) {
        for (uint32_t pass = 1; pass < passes; pass++) {
            float more[NT];
            x.load(p, writer + pass * writers, scratch, sums, lane, more);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) square[nt] += more[nt];
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            square[nt] = quad_sum(square[nt]);
            const uint32_t at = squares + (((group * NT + nt) * writers + writer) * 8 + lane / 4) * 4;
            for (uint32_t r = lane % 4; r < S; r += 4) cluster_store(in_cluster(at, r), square[nt]);
        }
    }
    // `scratch`, which may lie over the partial sums, is free, and Σ x² is there.
    if (S > 1) cluster_sync(); else __syncthreads();

    struct { uint32_t stage, parity; } take = {0, 0};
    for (uint32_t tile = begin; tile < end; tile++) {
        // Partial sums go to the block whose turn it is.
        const uint32_t i = tile - begin, owner = i % S, slot = i / S % p.slots, round = i / S / p.slots;
        const uint32_t slot_at = partials + (group * p.slots + slot) * writers * partial_bytes;
        for (uint32_t half = 0; half < halves; half++) {
            float acc[NT][4] = {};
            for (uint32_t pass = 0; pass < passes; pass++) {
                const uint32_t chunk = writer + pass * writers, tiles = tiles_of(chunk);
                float unused[NT];
                if (passes > 1) x.load(p, chunk, scratch, sums, lane, unused);
                Super<L> super;
#pragma unroll
                for (int stage = 0; stage < CHUNK_TILES / ST; stage++) {
                    if (stage * ST >= tiles) break;
                    uint32_t at = ring + take.stage * STAGE;
                    barrier_wait(full + take.stage * 8, take.parity);
                    if (stage == 0) {
                        super.load(at, lane);
                        at += L::SUPER;
                    }
#pragma unroll
                    for (int j = 0; j < ST; j++) {
                        if (stage * ST + j < tiles) tile_product<L, NT>(acc, x, super, at + j * L::TILE, sums, stage * ST + j, lane);
                    }
                    if (++take.stage == p.stages) take = {0, take.parity ^ 1};
                    __syncwarp();
                    copy_next();
                }
            }
            if (half == 0 && round > 0) barrier_wait(taken + (owner * p.slots + slot) * 8, (round - 1) & 1);
            const uint32_t to = slot_at + writer * partial_bytes + half * NT * 512 + lane * 16;
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                const float4 v = make_float4(acc[nt][0], acc[nt][1], acc[nt][2], acc[nt][3]);
                if (S > 1) {
                    cluster_store_async(in_cluster(to + nt * 512, owner), v, in_cluster(written + slot * 8, owner));
                } else {
                    sts128(to + nt * 512, v);
                }
            }
        }
        if (S == 1) {
            __syncwarp();
            if (lane == 0) barrier_arrive(written + slot * 8);
        }
    }
    // Adds the partial sums of a row tile in the order of columns and stores what becomes of them.
    const uint32_t all_written = barriers + WARPS * p.stages * 8;
    auto add_partials = [&](uint32_t group, uint32_t tile, uint32_t n) {
        const uint32_t slot = n % p.slots, written = all_written + (group * p.slots * (1 + S) + slot) * 8;
        const uint32_t at = partials + (group * p.slots + slot) * writers * partial_bytes + lane * 16, row = tile * TILE_ROWS + lane / 4;
        if (S > 1 && lane == 0) barrier_expect(written, writers * partial_bytes);
        barrier_wait(written, n / p.slots & 1);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float sum[2][4] = {};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (half == halves) break;
#pragma unroll 8
                for (uint32_t w = 0; w < writers; w++) {
                    const uint4 v = lds128(at + w * partial_bytes + (half * NT + nt) * 512);
                    sum[half][0] += __uint_as_float(v.x), sum[half][1] += __uint_as_float(v.y);
                    sum[half][2] += __uint_as_float(v.z), sum[half][3] += __uint_as_float(v.w);
                }
            }
            float rstd[2] = {1.0f, 1.0f};
            if (p.norm) {
                float total[2] = {};
#pragma unroll 8
                for (uint32_t w = 0; w < writers; w++) {
                    const uint2 v = lds64(squares + (((group * NT + nt) * writers + w) * 8 + lane % 4 * 2) * 4);
                    total[0] += __uint_as_float(v.x), total[1] += __uint_as_float(v.y);
                }
#pragma unroll
                for (int e = 0; e < 2; e++) rstd[e] = rsqrtf(__fdividef(total[e], float(p.cols)) + p.eps);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const uint32_t token = nt * 8 + lane % 4 * 2 + e % 2, column = row + e / 2 * 8;
                if (token >= p.tokens || column >= p.columns) continue;
                float v = sum[0][e] * rstd[e % 2] + (p.bias ? p.bias[column] : 0.0f);
                if (gated) v = activate(v, p.epilogue) * (sum[1][e] * rstd[e % 2] + (p.bias ? p.bias[p.columns + column] : 0.0f));
                const size_t to = size_t(token) * p.out_stride + column;
                if (p.out_f32) {
                    float* out = static_cast<float*>(p.out) + to;
                    *out = p.epilogue == ADD ? *out + v : v;
                } else {
                    bf16* out = static_cast<bf16*>(p.out) + to;
                    *out = from_f32<bf16>(p.epilogue == ADD ? to_f32(*out) + v : v);
                }
            }
        }
        __syncwarp();
        const uint32_t taken = all_written + (group * p.slots * (1 + S) + p.slots + rank * p.slots + slot) * 8;
        if (S > 1) {
            if (lane < S) cluster_arrive(in_cluster(taken, lane));
        } else if (lane == 0) {
            barrier_arrive(taken);
        }
    };

    // Row tiles in turn, those of this block's slots.
    for (uint32_t n = 0, turn = 0; warp >= WARPS; n++) {
        bool any = false;
        for (uint32_t group = 0; group < p.groups; group++) {
            const uint32_t begin = first_tile(group), end = first_tile(group + 1), tile = begin + n * S + rank;
            if (tile >= end) continue;
            any = true;
            if (turn++ % REDUCERS == warp - WARPS) add_partials(group, tile, n);
        }
        if (!any) break;
    }
    // No block may leave while another still writes to its shared memory.
    if (S > 1) cluster_sync();
}

constexpr int LINEAR_WARPS = 16, STAGE_TILES = 2;

#define PACKED_LINEAR_OF(name, format, tokens)                                                                                       \
    extern "C" __global__ __launch_bounds__((LINEAR_WARPS + REDUCERS) * WARP, 1) void packed_linear_##name##_t##tokens(               \
        const __grid_constant__ PackedLinearParams p) {                                                                              \
        packed_linear<Format::format, STAGE_TILES, tokens / 8, LINEAR_WARPS>(p);                                                     \
    }
#define PACKED_LINEAR(name, format) PACKED_LINEAR_OF(name, format, 8) PACKED_LINEAR_OF(name, format, 16)
