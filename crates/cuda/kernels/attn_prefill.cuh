// attn_prefill:  out = softmax(mask(softcap(scale · q · kᵀ))) · v over the paged cache, for sequences of many query rows,
// on every architecture
//
// FlashAttention-2 (Dao 2023, arXiv:2307.08691). A CTA owns a tile of query rows of one KV head of one sequence: rows are
// tokens times the query heads of that KV head, so that short chunks of a prompt fill tiles too. Its warps own 16 · ROW_TILES
// rows each and walk the keys that the rows see, TOKENS at a time, through two stages of shared memory (cp.async); scores
// and outputs stay in registers, m16n8k16 matrix products. The query tile lives in shared memory: 32 rows of a warp share
// what it reads of keys and values, which is what shared memory has the bandwidth for.
//
// Bound by the tensor cores.
//
// H100 80GB HBM3, 2026-11-25, causal, BF16, without the Hopper kernel: 1 x 8192 tokens of 32 heads over 8 KV heads of 128:
// 300 TFLOP/s (32/32 heads: 305), 1 x 2048: 241, 16 x 1024: 207; heads of 64: 282, 80: 258, 96: 279, 256: 236.
// Lost: steps of 64 keys for heads of 128: 291, of 16: 243; one row tile per warp, 4 or 8 warps: 244, 252; heads of 256 in
// steps of 16: 197; heads of 64, 80 and 96 in steps of 32: as good at 8192 tokens, 4 to 20 % slower at 4096.
#pragma once

#include "attention.cuh"

namespace prefill {

template <typename T_, int HEAD_DIM_, int ROW_TILES_, int WARPS_, int TOKENS_>
struct Tile {
    using T = T_;
    static constexpr int HEAD_DIM = HEAD_DIM_, ROW_TILES = ROW_TILES_, WARPS = WARPS_, TOKENS = TOKENS_;
    static constexpr int WARP_ROWS = 16 * ROW_TILES;
    static constexpr int ROWS = WARP_ROWS * WARPS;
    static constexpr int THREADS = 32 * WARPS;
    // An odd number of 16-byte chunks per row: eight rows at one column meet no bank twice.
    static constexpr int PITCH = HEAD_DIM + 8;
    static constexpr int KEY_BYTES = TOKENS * PITCH * 2;
    static constexpr int QUERY_BYTES = ROWS * PITCH * 2;
    static constexpr int SMEM_BYTES = QUERY_BYTES + 4 * KEY_BYTES;
    static_assert(HEAD_DIM % 16 == 0 && TOKENS % 16 == 0, "an mma step takes 16");
    static_assert(TOKENS <= 64, "a tile of tokens lies in one 64-token block");
};

template <typename Tile>
__device__ void attn_prefill(const AttnParams& p) {
    using T = typename Tile::T;
    constexpr int HEAD_DIM = Tile::HEAD_DIM, ROW_TILES = Tile::ROW_TILES, ROWS = Tile::ROWS, TOKENS = Tile::TOKENS;
    constexpr int PITCH = Tile::PITCH, THREADS = Tile::THREADS, WARPS = Tile::WARPS, STEPS = HEAD_DIM / 16, KEY_TILES = TOKENS / 8;
    constexpr bool QUERY_IN_REGISTERS = ROW_TILES == 1 && HEAD_DIM <= 128;

    extern __shared__ __align__(128) unsigned char smem[];
    T* const query = reinterpret_cast<T*>(smem);
    int* const shared = reinterpret_cast<int*>(smem);  // [WARPS + 2], before the queries are there
    const uint32_t ring = smem_address(smem) + Tile::QUERY_BYTES;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q4 = lane & 3;

    pdl_wait();
    pdl_launch();

    // Finds the sequence of this CTA's row tile. The last tiles of a sequence see the most context and start first.
    {
        if (tid == 0) shared[WARPS] = -1;
        const int each = (p.seqs + THREADS - 1) / THREADS;
        const int first = min(tid * each, p.seqs), last = min(first + each, p.seqs);
        const auto tiles_of = [&](int s) { return (query_rows_of(p, s, p.context_lens[s]) * p.group + ROWS - 1) / ROWS; };
        int sum = 0;
        for (int s = first; s < last; ++s) sum += tiles_of(s);
        int inclusive = sum;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int other = __shfl_up_sync(FULL, inclusive, d);
            if (lane >= d) inclusive += other;
        }
        if (lane == 31) shared[warp] = inclusive;
        __syncthreads();
        int start = inclusive - sum;
        for (int w = 0; w < warp; ++w) start += shared[w];
        int rest = static_cast<int>(blockIdx.y) - start;
        if (rest >= 0 && rest < sum) {
            int s = first;
            for (int tiles; rest >= (tiles = tiles_of(s)); ++s) rest -= tiles;
            shared[WARPS] = s;
            shared[WARPS + 1] = tiles_of(s) - 1 - rest;
        }
        __syncthreads();
    }
    const int seq = shared[WARPS];
    const int first_row = shared[WARPS + 1] * ROWS;  // rows are counted as token * group + head
    if (seq < 0) return;
    __syncthreads();
    const int kv_head = blockIdx.x;
    const int context = p.context_lens[seq], query_rows = query_rows_of(p, seq, context);
    const int rows = min(ROWS, query_rows * p.group - first_row);
    const int first_token = first_token_of(p, seq);
    // Row r sees the tokens up to end_of(r), exclusive.
    const int end_0 = context - query_rows + 1;
    const auto end_of = [&](int r) { return end_0 + (first_row + r) / p.group; };
    const int tile_end = (end_of(rows - 1) + TOKENS - 1) / TOKENS;
    const int tile_start = p.window > 0 ? max(0, end_of(0) - p.window) / TOKENS : 0;

    const int* const table = p.block_tables + static_cast<long long>(seq) * p.max_blocks;
    const int block_mask = (1 << p.block_shift) - 1;
    const long long row_bytes = 2 * p.head_dim;
    const bool one_block = (1 << p.block_shift) >= TOKENS;
    const auto block_of = [&](int tile) { return one_block && tile < tile_end ? table[tile * TOKENS >> p.block_shift] : 0; };
    int block = block_of(tile_start);
    const auto load = [&](int tile, int stage) {
        const uint32_t keys = ring + stage * 2 * Tile::KEY_BYTES;
        if (tile < tile_end) {
            const long long base = (static_cast<long long>(block) * p.kv_heads + kv_head << p.block_shift) + (tile * TOKENS & block_mask);
#pragma unroll
            for (int i = 0; i < (TOKENS * HEAD_DIM / 8 + THREADS - 1) / THREADS; ++i) {
                const int chunk = tid + i * THREADS;
                const int r = chunk / (HEAD_DIM / 8), column = chunk % (HEAD_DIM / 8);
                if (TOKENS * HEAD_DIM / 8 % THREADS != 0 && r >= TOKENS) break;
                const int t = tile * TOKENS + r;
                const bool valid = t < context && column * 8 < p.head_dim;
                long long row = base + r;
                if (!one_block) row = valid ? (static_cast<long long>(table[t >> p.block_shift]) * p.kv_heads + kv_head << p.block_shift) + (t & block_mask) : 0;
                const long long at = valid ? row * row_bytes + column * 16 : 0;
                const uint32_t to = keys + (r * PITCH + column * 8) * 2;
                cp_async_16(to, static_cast<const char*>(p.k_cache) + at, valid);
                cp_async_16(to + Tile::KEY_BYTES, static_cast<const char*>(p.v_cache) + at, valid);
            }
        }
        cp_async_commit();
    };
    load(tile_start, 0);
    block = block_of(tile_start + 1);

    for (int i = tid; i < ROWS * HEAD_DIM / 8; i += THREADS) {
        const int r = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (r < rows && column * 8 < p.head_dim) {
            const int token = (first_row + r) / p.group, head = kv_head * p.group + (first_row + r) % p.group;
            v = *reinterpret_cast<const uint4*>(p.q + (first_token + token) * p.q_stride + head * p.head_dim + column * 8);
            v = make_uint4(from_bf16x2<T>(v.x), from_bf16x2<T>(v.y), from_bf16x2<T>(v.z), from_bf16x2<T>(v.w));
        }
        *reinterpret_cast<uint4*>(query + r * PITCH + column * 8) = v;
    }
    __syncthreads();
    const int warp_row = warp * Tile::WARP_ROWS;
    const uint32_t query_at = smem_address(query + (warp_row + (lane & 15)) * PITCH + (lane >> 4) * 8);
    uint32_t qf[QUERY_IN_REGISTERS ? STEPS : 1][4];
    if (QUERY_IN_REGISTERS) {
#pragma unroll
        for (int k = 0; k < STEPS; ++k) ldmatrix_x4(qf[k], query_at + k * 32);
    }
    float o[ROW_TILES][2 * STEPS][4] = {}, top[ROW_TILES][2], sum[ROW_TILES][2] = {};
    int end[ROW_TILES][2];
#pragma unroll
    for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            top[t][h] = -INFINITY;
            end[t][h] = min(end_of(warp_row + t * 16 + h * 8 + g), context);
        }
    const int warp_end = min(end_of(warp_row + Tile::WARP_ROWS - 1), context), warp_min_end = end_of(warp_row);
    const int warp_start = p.window > 0 ? warp_min_end - p.window : 0, warp_max_start = p.window > 0 ? warp_end - p.window : 0;
    const ScoreScale score(p);

    for (int tile = tile_start, stage = 0; tile < tile_end; ++tile, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        load(tile + 1, stage ^ 1);
        block = block_of(tile + 2);
        const int first = tile * TOKENS;
        if (first >= warp_end || first + TOKENS <= warp_start || warp_row >= rows) continue;
        const uint32_t keys = ring + stage * 2 * Tile::KEY_BYTES, values = keys + Tile::KEY_BYTES;

        float s[ROW_TILES][KEY_TILES][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            uint32_t a[ROW_TILES][4];
#pragma unroll
            for (int t = 0; t < ROW_TILES; ++t) {
                if (QUERY_IN_REGISTERS) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) a[t][e] = qf[k][e];
                } else {
                    ldmatrix_x4(a[t], query_at + t * 16 * PITCH * 2 + k * 32);
                }
            }
#pragma unroll
            for (int n = 0; n < KEY_TILES; n += 2) {
                uint32_t b[4];
                ldmatrix_x4(b, keys + ((n * 8 + (lane & 7) + ((lane >> 4) << 3)) * PITCH + k * 16 + ((lane >> 3) & 1) * 8) * 2);
#pragma unroll
                for (int t = 0; t < ROW_TILES; ++t) {
                    mma_16x8x16<T>(s[t][n], a[t], b[0], b[1]);
                    mma_16x8x16<T>(s[t][n + 1], a[t], b[2], b[3]);
                }
            }
        }
        if (score.cap > 0.0f) {
#pragma unroll
            for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
                for (int n = 0; n < KEY_TILES; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) s[t][n][e] = score.capped(s[t][n][e]);
        }
        if (first + TOKENS > warp_min_end || first < warp_max_start) {
#pragma unroll
            for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
                for (int n = 0; n < KEY_TILES; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int token = first + n * 8 + q4 * 2 + (e & 1);
                        if (token >= end[t][e >> 1] || (p.window > 0 && token < end[t][e >> 1] - p.window)) s[t][n][e] = -INFINITY;
                    }
        }
        uint32_t pf[ROW_TILES][TOKENS / 16][4];
#pragma unroll
        for (int t = 0; t < ROW_TILES; ++t) {
            float high[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                high[h] = -INFINITY;
#pragma unroll
                for (int n = 0; n < KEY_TILES; ++n) high[h] = fmaxf(high[h], fmaxf(s[t][n][2 * h], s[t][n][2 * h + 1]));
                high[h] = quad_max(high[h]);
            }
            // The reference exponent moves only when a score passes it by more than 2^8: no rounding is lost up to there.
            const bool moves = (high[0] - top[t][0]) * score.exponent > 8.0f || (high[1] - top[t][1]) * score.exponent > 8.0f;
            if (__any_sync(FULL, moves)) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float m = fmaxf(top[t][h], high[h]);
                    const float factor = m == -INFINITY ? 1.0f : exp2_approx((top[t][h] - m) * score.exponent);
                    top[t][h] = m;
                    sum[t][h] *= factor;
#pragma unroll
                    for (int n = 0; n < 2 * STEPS; ++n) o[t][n][2 * h] *= factor, o[t][n][2 * h + 1] *= factor;
                }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float m = top[t][h] == -INFINITY ? 0.0f : top[t][h] * score.exponent;
#pragma unroll
                for (int n = 0; n < KEY_TILES; ++n) {
                    const float p0 = exp2_approx(fmaf(s[t][n][2 * h], score.exponent, -m));
                    const float p1 = exp2_approx(fmaf(s[t][n][2 * h + 1], score.exponent, -m));
                    sum[t][h] += p0 + p1;
                    pf[t][n / 2][2 * (n & 1) + h] = pack2<T>(p0, p1);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < TOKENS / 16; ++k)
#pragma unroll
            for (int n = 0; n < STEPS; ++n) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, values + ((k * 16 + (lane & 15)) * PITCH + n * 16 + (lane >> 4) * 8) * 2);
#pragma unroll
                for (int t = 0; t < ROW_TILES; ++t) {
                    mma_16x8x16<T>(o[t][2 * n], pf[t][k], b[0], b[1]);
                    mma_16x8x16<T>(o[t][2 * n + 1], pf[t][k], b[2], b[3]);
                }
            }
    }

    // A warp's rows go out through the shared memory that held its queries, whole rows at a time.
    __syncwarp();
    bf16* const mine = reinterpret_cast<bf16*>(query) + warp_row * PITCH;
#pragma unroll
    for (int t = 0; t < ROW_TILES; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = t * 16 + h * 8 + g;
            float l = quad_sum(sum[t][h]);
            if (p.sinks) l += exp2_approx(p.sinks[kv_head * p.group + (first_row + warp_row + r) % p.group] * LOG2E - top[t][h] * score.exponent);
            const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
#pragma unroll
            for (int n = 0; n < 2 * STEPS; ++n)
                *reinterpret_cast<uint32_t*>(mine + r * PITCH + n * 8 + q4 * 2) = pack2<bf16>(o[t][n][2 * h] * inverse, o[t][n][2 * h + 1] * inverse);
        }
    __syncwarp();
    for (int i = lane; i < Tile::WARP_ROWS * HEAD_DIM / 8; i += 32) {
        const int r = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8, row = first_row + warp_row + r;
        if (warp_row + r < rows && column < p.head_dim)
            *reinterpret_cast<uint4*>(p.out + (first_token + row / p.group) * p.out_stride + (kv_head * p.group + row % p.group) * p.head_dim + column) =
                *reinterpret_cast<const uint4*>(mine + r * PITCH + column);
    }
}

}  // namespace prefill

// The kernel `attn_prefill_T_hdHEAD_DIM` of WARPS warps of 16 · ROW_TILES rows, with CTAS of it on one SM.
#define ATTN_PREFILL(T, HEAD_DIM, ROW_TILES, WARPS, TOKENS, CTAS)                                                \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, CTAS)                                               \
        attn_prefill_##T##_hd##HEAD_DIM(const __grid_constant__ AttnParams p) {                                  \
        prefill::attn_prefill<prefill::Tile<T, HEAD_DIM, ROW_TILES, WARPS, TOKENS>>(p);                          \
    }
