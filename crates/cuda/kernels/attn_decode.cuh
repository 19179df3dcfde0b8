// attn_decode:  out = softmax(mask(softcap(scale · q · kᵀ))) · v over the paged cache, for sequences of few query rows
//
// Work. An item is one KV head of one sequence with up to 16 · ROW_TILES query rows: all query heads of the KV head, times
// the sequence's query rows, so that keys and values are read once for all of them. Its context, in tiles of 64 tokens, is
// cut into chunks (flash-decoding, Dao et al. 2023). How finely, every warp computes for itself from the lengths on the
// device, so that a captured launch suits any batch: few long items are cut until they fill the device, many short ones not
// at all. As many CTAs run as fit; each takes the chunk of its own number, then whichever is next in line.
//
// A CTA's four warps take 16 tokens each of every tile and know nothing of each other until the end: own ring of STAGES
// tiles of keys and values (cp.async), own maximum and sum, m16n8k16 matrix products with the query rows padded to 16.
// Then the warps are joined through shared memory, and the chunks of an item through global memory by the last CTA to
// arrive, in the order of the context: results do not depend on which CTA that is.
//
// rope_attention: the same behind the qkv projection itself, norms, rotary embedding and the new rows of the cache included
// (attn_decode_heads.cuh): queries, new keys and new values of a chunk are changed on their way into shared memory.
//
// Before it waits for the kernel in front, it reads lengths, positions and block tables and loads keys and values of earlier
// steps. That is sound although kernels in front may let their successors start before they have waited themselves: each
// step begins with an embedding, which waits first. Whatever came before that kernel, the cache of earlier steps and the copies
// of this step's lengths among it, has ended when any later one starts. New keys and values are read only after the wait,
// or, with raw heads, never from the cache.
//
// Bound by memory: 4 · head_dim bytes of a token and KV head, 2.5 instructions per 16 bytes.
//
// H100 80GB HBM3, 2026-11-25, BF16, µs of a launch in a graph, and % of the time that 3.09 TB/s would take:
//   heads 32/8 x 128    ctx 300       ctx 320       2048          32768         mixed to 32768, 4096 most
//   batch 1              4.6                         7.8 (35 %)   50.9 (85 %)
//   batch 8              7.1 (45 %)                 26.8 (81 %)  370.3 (94 %)
//   batch 64                          31 to 36     184.4 (94 %)                235.4 (91 %)
//   batch 256                        117.8 (92 %)  728.8 (95 %)
//   batch 64 x 2048: heads 28/4: 94 %, 64/4: 92 %, 16/8: 94 %; 24/24 x 64: 95 %, 14/2 x 64: 80 %; 32/8 x 80: 87 %,
//   32/8 x 96: 92 %, 16/8 x 256: 96 %
// Lost, at batch 256 x 320: a fixed share of all tiles for each CTA, cut anywhere: 130.6 (some SMs get a quarter less of the
// bandwidth than others, and every cut is waited for), four times as many CTAs with smaller shares: 123.3; CTAs of 2 warps:
// 134.1, of 8: 133.8. Waiting for the kernel in front before everything else: 123.1, and 6.2 for batch 1 x 300. Two stages
// and three CTAs on an SM for heads of 128: the same there, 10 % slower for 28/4 heads. The next chunk's first tiles loaded
// while one is joined: 117.5, and 35.1 instead of 31.0 for batch 64 x 320. For batch 1, clusters of 8 CTAs joined through
// distributed shared memory: 4.8 at 300, 13.0 at 2048.
// rope_attention, µs of a whole Q4_K layer of the 8B at batch 1 and 300, 1000 and 4096 tokens of context: 51.9, 53.2, 60.1 where a small
// block runs beside one of the products before and behind it; large ones, with more L1, 53.0, 55.4, 62.1; rope_kv_write and attn_decode 54.2,
// 56.7, 63.2 (in a chain with a stand-in for the projection, 8B: batch 4 7.65 instead of 8.0, 16 13.5 for 14.2, 256 124.9 for
// 125.4). Lost there: each lane its own sines, behind the wait, 53.6; the positions asked for after the keys, 54.0; clusters of 8
// joined by stores into the shared memory of the first, 53.2 (and 66.9 at 4096); blocks of two warps 55.0.
#pragma once

#include "attn_decode_heads.cuh"

namespace decode {

template <typename Tile, typename Heads>
__device__ void attn_decode(const AttnParams& p, const Heads& heads) {
    using T = typename Tile::T;
    constexpr int HEAD_DIM = Tile::HEAD_DIM, ROW_TILES = Tile::ROW_TILES, ROWS = Tile::ROWS, WARPS = Tile::WARPS;
    constexpr int PITCH = Tile::PITCH, TOKENS = Tile::TOKENS, THREADS = Tile::THREADS, STAGES = Tile::STAGES;
    constexpr int STEPS = HEAD_DIM / 16;

    extern __shared__ __align__(128) unsigned char smem[];
    float2* const state = reinterpret_cast<float2*>(smem + Tile::RING_BYTES);  // [WARPS, ROWS] (maximum, sum)
    int* const shared = reinterpret_cast<int*>(state + WARPS * ROWS);          // [2]: last to arrive, next chunk
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q4 = lane & 3;
    const auto outputs_of = [&](int w, int t) { return reinterpret_cast<float*>(smem + (w * STAGES + t) * Tile::STAGE_BYTES); };
    const uint32_t ring = smem_address(smem + warp * STAGES * Tile::STAGE_BYTES);

    [[maybe_unused]] Rows<Tile, Heads> raw(p, heads, smem + Tile::SMEM_BYTES);
    const Plan plan = decode::plan<Tile>(p);
    const ScoreScale score(p);
    const int block_mask = (1 << p.block_shift) - 1;
    bool waited = false;
    // Whoever has nothing to do leaves at once, but for block 0: its wait is the whole kernel's.
    if (blockIdx.x >= plan.chunks && blockIdx.x > 0) return;
    for (int number = blockIdx.x; number < plan.chunks;) {
        const Chunk chunk = find<Tile>(p, plan, number);
        const int min_end = chunk.context - chunk.rows + 1;
        const int min_start = p.window > 0 ? max(0, min_end - p.window) : 0, max_start = p.window > 0 ? max(0, chunk.context - p.window) : 0;

        // A warp takes 16 tokens of every tile and runs STAGES tiles ahead; lane l looks up the block of token l % 16.
        const int loaded_end = Heads::RAW ? chunk.context - chunk.rows : chunk.context;
        int load_tile = chunk.tile, load_block;
        const auto look_up = [&]() {
            const int t = load_tile * TOKENS + warp * 16 + (lane & 15);
            load_block = -1;
            if (load_tile < chunk.last_tile && t < loaded_end && t >= min_start)
                load_block = p.block_tables[static_cast<long long>(chunk.seq) * p.max_blocks + (t >> p.block_shift)];
        };
        const auto issue = [&](int stage) {
            if (load_tile < chunk.last_tile) {
                const int t = load_tile * TOKENS + warp * 16 + (lane & 15);
                const int row = load_block < 0 ? -1 : ((load_block * p.kv_heads + chunk.head) << p.block_shift) + (t & block_mask);
                const long long row_bytes = 2 * p.head_dim;
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const char* cache = static_cast<const char*>(side == 0 ? p.k_cache : p.v_cache);
#pragma unroll
                    for (int i = 0; i < STEPS; ++i) {
                        const int at = lane + 32 * i, r = at / (HEAD_DIM / 8), column = at % (HEAD_DIM / 8);
                        const int source = __shfl_sync(FULL, row, r);
                        const bool valid = source >= 0 && column * 8 < p.head_dim;
                        cp_async_16(ring + stage * Tile::STAGE_BYTES + side * Tile::KEY_BYTES + (r * PITCH + column * 8) * 2,
                                    cache + max(source, 0) * row_bytes + column * 16, valid);
                    }
                    cp_async_commit();
                }
                ++load_tile;
                look_up();
            } else {
                cp_async_commit();
                cp_async_commit();
            }
        };
        look_up();
        if constexpr (Heads::RAW) {
            raw.begin(chunk);
            if (waited) raw.fetch();
        }
        // What earlier steps wrote is there already: see the header.
#pragma unroll 1
        for (int stage = 0; stage < STAGES; ++stage) {
            if (!Heads::RAW && !waited && !(load_tile < chunk.last_tile && load_tile * TOKENS + warp * 16 + 16 < min_end)) {
                pdl_wait();
                pdl_launch();
                waited = true;
            }
            issue(stage);
        }
        if (!waited) {
            pdl_wait();
            pdl_launch();
            waited = true;
            if constexpr (Heads::RAW) raw.fetch();
        }
        if constexpr (Heads::RAW) {
            raw.prepare(chunk);
            __syncthreads();
            raw.take(chunk);
        }
        // Chunks beyond the first of each CTA go to whoever is free. The ticket is drawn long before it is needed.
        unsigned ticket = 0;
        if (plan.chunks > gridDim.x && tid == 0) ticket = atomicAdd(p.tickets, 1);

        const int first_token = first_token_of(p, chunk.seq);
        const int first_row = chunk.row_block * ROWS;  // rows are counted as token * group + head
        const int rows = min(ROWS, chunk.rows * p.group - first_row);
        int end[ROW_TILES][2];
#pragma unroll
        for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                end[t][h] = min(chunk.context - chunk.rows + 1 + quick_divide(first_row + t * 16 + h * 8 + g, p.group), chunk.context);
        [[maybe_unused]] uint32_t qf[ROW_TILES][STEPS][4];
        if constexpr (Heads::RAW) {
            __syncthreads();
        } else {
            // Straight from global memory: every warp reads the same few rows, all but the first from L1.
#pragma unroll
            for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = first_row + t * 16 + h * 8 + g, token = quick_divide(row, p.group);
                    const bool valid = token < chunk.rows;
                    const bf16* from = p.q + (first_token + token) * p.q_stride + (chunk.head * p.group + row - token * p.group) * p.head_dim + q4 * 2;
#pragma unroll
                    for (int k = 0; k < 2 * STEPS; ++k)
                        qf[t][k / 2][2 * (k & 1) + h] = from_bf16x2<T>(valid && k * 8 < p.head_dim ? *reinterpret_cast<const uint32_t*>(from + k * 8) : 0);
                }
        }
        if (tid == 0) shared[1] = gridDim.x + ticket;

        float o[ROW_TILES][2 * STEPS][4] = {}, top[ROW_TILES][2], sum[ROW_TILES][2] = {};
#pragma unroll
        for (int t = 0; t < ROW_TILES; ++t) top[t][0] = top[t][1] = -INFINITY;
        for (int tile = chunk.tile, stage = 0; tile < chunk.last_tile; ++tile, stage = stage + 1 == STAGES ? 0 : stage + 1) {
            const uint32_t keys = ring + stage * Tile::STAGE_BYTES, values = keys + Tile::KEY_BYTES;
            float s[ROW_TILES][2][4] = {};
            const int first = tile * TOKENS + warp * 16;
            cp_async_wait<2 * STAGES - 1>();
            if constexpr (Heads::RAW) {
                if (first + 16 > loaded_end) {
                    cp_async_wait<2 * STAGES - 2>();
                    __syncwarp();
                    raw.insert(chunk, first, smem + (warp * STAGES + stage) * Tile::STAGE_BYTES);
                }
            }
            __syncwarp();
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                uint32_t b[4];
                ldmatrix_x4(b, keys + (((lane & 7) + ((lane >> 4) << 3)) * PITCH + k * 16 + ((lane >> 3) & 1) * 8) * 2);
#pragma unroll
                for (int t = 0; t < ROW_TILES; ++t) {
                    if constexpr (Heads::RAW) raw.load(qf[t][k], t, k);
                    mma_16x8x16<T>(s[t][0], qf[t][k], b[0], b[1]);
                    mma_16x8x16<T>(s[t][1], qf[t][k], b[2], b[3]);
                }
            }
            const bool edge = first + 16 > min_end || first < max_start;
            uint32_t pf[ROW_TILES][4];
#pragma unroll
            for (int t = 0; t < ROW_TILES; ++t) {
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) s[t][n][e] = score.exponent * score.capped(s[t][n][e]);
                if (edge) {
#pragma unroll
                    for (int n = 0; n < 2; ++n)
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const int token = first + n * 8 + q4 * 2 + (e & 1), past = end[t][e >> 1];
                            if (token >= past || (p.window > 0 && token < past - p.window)) s[t][n][e] = -INFINITY;
                        }
                }
                float high[2];
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    high[h] = quad_max(fmaxf(fmaxf(s[t][0][2 * h], s[t][0][2 * h + 1]), fmaxf(s[t][1][2 * h], s[t][1][2 * h + 1])));
                // The reference exponent moves only when a score passes it by more than 2^8: no rounding is lost up to there.
                if (__any_sync(FULL, high[0] > top[t][0] + 8.0f || high[1] > top[t][1] + 8.0f)) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const float m = fmaxf(top[t][h], high[h]);
                        const float factor = m == -INFINITY ? 1.0f : exp2_approx(top[t][h] - m);
                        top[t][h] = m;
                        sum[t][h] *= factor;
#pragma unroll
                        for (int n = 0; n < 2 * STEPS; ++n) o[t][n][2 * h] *= factor, o[t][n][2 * h + 1] *= factor;
                    }
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float m = top[t][h] == -INFINITY ? 0.0f : top[t][h];
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
                        const float p0 = exp2_approx(s[t][n][2 * h] - m), p1 = exp2_approx(s[t][n][2 * h + 1] - m);
                        sum[t][h] += p0 + p1;
                        pf[t][2 * n + h] = pack2<T>(p0, p1);
                    }
                }
            }
            cp_async_wait<2 * STAGES - 2>();
            __syncwarp();
#pragma unroll
            for (int n = 0; n < STEPS; ++n) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, values + ((lane & 15) * PITCH + n * 16 + (lane >> 4) * 8) * 2);
#pragma unroll
                for (int t = 0; t < ROW_TILES; ++t) {
                    mma_16x8x16<T>(o[t][2 * n], pf[t], b[0], b[1]);
                    mma_16x8x16<T>(o[t][2 * n + 1], pf[t], b[2], b[3]);
                }
            }
            __syncwarp();
            issue(stage);
        }

        // Joins the warps through the ring, which all of its loads have left.
        cp_async_wait<0>();
#pragma unroll
        for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = g + 8 * h;
                const float l = quad_sum(sum[t][h]);
                if (t * 16 + r < rows) {
                    if (q4 == 0) state[warp * ROWS + t * 16 + r] = make_float2(top[t][h], l);
#pragma unroll
                    for (int n = 0; n < 2 * STEPS; ++n)
                        *reinterpret_cast<float2*>(outputs_of(warp, t) + r * PITCH + n * 8 + q4 * 2) = make_float2(o[t][n][2 * h], o[t][n][2 * h + 1]);
                }
            }
        __syncthreads();
        const auto store = [&](int r, int column, const Partial& x) {
            const int token = quick_divide(first_row + r, p.group), head = chunk.head * p.group + first_row + r - token * p.group;
            const float l = p.sinks ? x.sum + exp2_approx(p.sinks[head] * LOG2E - x.top) : x.sum;
            const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
            if (column < p.head_dim)
                *reinterpret_cast<uint2*>(p.out + (first_token + token) * p.out_stride + head * p.head_dim + column) =
                    make_uint2(pack2<bf16>(x.out.x * inverse, x.out.y * inverse), pack2<bf16>(x.out.z * inverse, x.out.w * inverse));
        };
#pragma unroll 1
        for (int i = tid; i < rows * (HEAD_DIM / 4); i += THREADS) {
            const int r = i / (HEAD_DIM / 4), column = i % (HEAD_DIM / 4) * 4;
            float2 parts[WARPS];
            float4 outs[WARPS];
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                parts[w] = state[w * ROWS + r];
                outs[w] = *reinterpret_cast<const float4*>(outputs_of(w, r / 16) + r % 16 * PITCH + column);
            }
            Partial x;
            x.join(parts, outs);
            if (chunk.parts == 1) {
                store(r, column, x);
            } else {
                const long long row = static_cast<long long>(number) * ROWS + r;
                __stcg(reinterpret_cast<float4*>(p.partial_out + row * HEAD_DIM + column), x.out);
                if (column == 0) __stcg(p.partial_state + row, make_float2(x.top, x.sum));
            }
        }
        // Joins the chunks of an item: the last to arrive reads all of them, in the order of the context.
        if (chunk.parts > 1) {
            __syncthreads();
            if (tid == 0) shared[0] = arrive(p.arrivals + chunk.base, chunk.parts - 1) == chunk.parts - 1;
            __syncthreads();
            if (shared[0]) {
                constexpr int BATCH = 8;  // loads in flight
#pragma unroll 1
                for (int i = tid; i < rows * (HEAD_DIM / 4); i += THREADS) {
                    const int r = i / (HEAD_DIM / 4), column = i % (HEAD_DIM / 4) * 4;
                    Partial x;
#pragma unroll 1
                    for (int first = 0; first < chunk.parts; first += BATCH) {
                        float2 parts[BATCH];
                        float4 outs[BATCH];
#pragma unroll
                        for (int u = 0; u < BATCH; ++u) {
                            const long long row = static_cast<long long>(chunk.base + min(first + u, chunk.parts - 1)) * ROWS + r;
                            parts[u] = __ldcg(p.partial_state + row);
                            outs[u] = __ldcg(reinterpret_cast<const float4*>(p.partial_out + row * HEAD_DIM + column));
                            if (first + u >= chunk.parts) parts[u].x = -INFINITY;
                        }
                        x.join(parts, outs);
                    }
                    store(r, column, x);
                }
            }
        }
        __syncthreads();
        number = plan.chunks > gridDim.x ? shared[1] : plan.chunks;
        __syncthreads();
    }
    if (!waited) {
        pdl_wait();
        pdl_launch();
    }
    // The last CTA to leave sets the tickets back.
    if (plan.chunks > gridDim.x && tid == 0 && atomicInc(p.tickets + 1, gridDim.x - 1) == gridDim.x - 1) p.tickets[0] = 0;
}

}  // namespace decode

// The kernel `attn_decode_T_hdHEAD_DIM_mROW_TILES_sSTAGES` of 16 · ROW_TILES rows, with CTAS of it on one SM.
#define ATTN_DECODE(T, HEAD_DIM, ROW_TILES, STAGES, CTAS)                                                        \
    extern "C" __global__ void __launch_bounds__(128, CTAS)                                                      \
        attn_decode_##T##_hd##HEAD_DIM##_m##ROW_TILES##_s##STAGES(const __grid_constant__ AttnParams p) {        \
        decode::attn_decode<decode::Tile<T, HEAD_DIM, ROW_TILES, STAGES>>(p, decode::CachedHeads());             \
    }

struct RopeAttnParams {
    AttnParams attention;  // q: q, k and v of each token, from the projection
    HeadChange heads;
};

// The kernel `rope_attn_decode_T_hdHEAD_DIM_sSTAGES` of 16 rows, with CTAS of it on one SM.
#define ROPE_ATTN_DECODE(T, HEAD_DIM, STAGES, CTAS)                                                              \
    extern "C" __global__ void __launch_bounds__(128, CTAS)                                                      \
        rope_attn_decode_##T##_hd##HEAD_DIM##_s##STAGES(const __grid_constant__ RopeAttnParams p) {              \
        decode::attn_decode<decode::Tile<T, HEAD_DIM, 1, STAGES>>(p.attention, decode::RawHeads{p.heads});       \
    }
