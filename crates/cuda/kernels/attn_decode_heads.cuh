// Where attn_decode.cuh has its queries and its newest keys and values from: the cache, or rows of the qkv projection.
#pragma once

#include "attn_decode_plan.cuh"
#include "rotary.cuh"

#include <type_traits>

namespace decode {

// Queries as AttnParams says, and all keys and values in the cache.
struct CachedHeads {
    static constexpr bool RAW = false;
};

// q points at the first of q, k and v of each token, as the projection left them.
struct RawHeads {
    static constexpr bool RAW = true;
    const HeadChange& change;
};

// The rows of the projection that a chunk needs: its queries, and k and v of those of its tokens that are new. They are changed on
// their way into shared memory, k and v into the cache as well: over L2 and back would take a microsecond. LANES lanes to a row.
// Whoever has a new token has it alone: with raw heads there is one row block to an item.
template <typename Tile>
struct RawRows {
    using T = typename Tile::T;
    static constexpr int HEAD_DIM = Tile::HEAD_DIM, PITCH = Tile::PITCH, LANES = HEAD_DIM / 8, AT_ONCE = Tile::THREADS / LANES;
    static constexpr int MAX_TOKENS = 4;  // of a sequence
    static constexpr int BYTES = (Tile::ROWS + 2 * MAX_TOKENS) * PITCH * 2 + MAX_TOKENS * HEAD_DIM * 4;
    static_assert(Tile::THREADS % (HEAD_DIM / 2) == 0, "a thread turns one pair of each token");
    static_assert(Tile::THREADS % LANES == 0 && 32 % LANES == 0, "lanes of a row are of one warp");

    const AttnParams& p;
    const HeadChange& change;
    const HeadPart<LANES> part;
    T* const queries;      // [ROWS, PITCH], the rest zeros
    T* const fresh;        // [k and v, MAX_TOKENS, PITCH]
    float2* const turns;   // [MAX_TOKENS, HEAD_DIM / 2] cosine and sine of each pair
    float freq;            // of the pair that this thread turns
    int first_token, position;
    int old_end;  // tokens from here on are new
    int q_rows, new_rows, first_new;
    struct Row {
        enum { QUERY, KEY, VALUE } kind;
        int token, head;
        int block;  // of the cache, for a new token
    } row;
    Pack<bf16> raw;
    Pack<float> weight[2];

    __device__ __forceinline__ RawRows(const AttnParams& p, const RawHeads& heads, unsigned char* smem)
        : p(p), change(heads.change), part(heads.change), queries(reinterpret_cast<T*>(smem)), fresh(queries + Tile::ROWS * PITCH),
          turns(reinterpret_cast<float2*>(fresh + 2 * MAX_TOKENS * PITCH)) {
        const int pair = threadIdx.x % (HEAD_DIM / 2);
        freq = change.inv_freq && pair < change.pairs ? change.inv_freq[pair] : 0.0f;
    }

    __device__ __forceinline__ void find(const Chunk& chunk, int from) {
        const int n = from + threadIdx.x / LANES;
        row = {Row::QUERY, 0, chunk.head * p.group, 0};
        if (n < q_rows) {
            row.token = quick_divide(n, p.group);
            row.head += n - row.token * p.group;
        } else if (n < q_rows + 2 * new_rows) {
            const bool value = n - q_rows >= new_rows;
            const int token = first_new + n - q_rows - value * new_rows, t = old_end + token;
            row = {value ? Row::VALUE : Row::KEY, token, p.kv_heads * (p.group + value) + chunk.head,
                   p.block_tables[static_cast<long long>(chunk.seq) * p.max_blocks + (t >> p.block_shift)]};
        }
    }

    // Finds the rows and asks for the positions: early, their latency is hidden behind the first keys and values.
    __device__ __forceinline__ void begin(const Chunk& chunk) {
        first_token = first_token_of(p, chunk.seq);
        old_end = chunk.context - chunk.rows;
        const int new_begin = max(old_end, chunk.tile * Tile::TOKENS);
        first_new = new_begin - old_end;
        q_rows = chunk.rows * p.group, new_rows = max(0, min(chunk.context, chunk.last_tile * Tile::TOKENS) - new_begin);
        position = change.positions[first_token + min(static_cast<int>(threadIdx.x) / (HEAD_DIM / 2), chunk.rows - 1)];
        find(chunk, 0);
    }

    // Asks for this lane's share of its row. The projection has ended.
    __device__ __forceinline__ void fetch() {
        raw = load_pack(p.q + (first_token + row.token) * p.q_stride + row.head * HEAD_DIM + part.first);
        const float* weights = row.kind == Row::QUERY ? change.q_weight : change.k_weight;
        if (weights) weight[0] = load_pack(weights + part.first), weight[1] = load_pack(weights + part.first + 4);
    }

    // Fills the table of turns, and rows of no queries with zeros. A barrier is due before `take`.
    __device__ __forceinline__ void prepare(const Chunk& chunk) {
        for (int i = threadIdx.x; change.inv_freq && i < chunk.rows * (HEAD_DIM / 2); i += Tile::THREADS) {
            if (i >= Tile::THREADS) position = change.positions[first_token + i / (HEAD_DIM / 2)];
            turns[i] = change.turn(position, freq);
        }
        for (int i = q_rows * (PITCH / 8) + threadIdx.x; i < Tile::ROWS * (PITCH / 8); i += Tile::THREADS)
            reinterpret_cast<uint4*>(queries)[i] = make_uint4(0, 0, 0, 0);
    }

    // A barrier is due before the rows are read.
    __device__ __forceinline__ void take(const Chunk& chunk) {
#pragma unroll 1
        for (int from = 0;;) {
            float x[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = to_f32(raw.v[i]);
            const bool changes = row.kind != Row::VALUE;
            if (change.q_weight) {
                float factors[8];
#pragma unroll
                for (int i = 0; i < 8; ++i) factors[i] = weight[i / 4].v[i % 4];
                part.norm(change, x, factors, changes);
            }
            if (change.inv_freq) {
                // Pairs of a lane lie side by side; what is not turned may read anything.
                const Pack<float>* from = reinterpret_cast<const Pack<float>*>(turns + row.token * (HEAD_DIM / 2) + (part.turned ? part.pair(change, 0) : 0));
                float2 turn[8];
#pragma unroll
                for (int i = 0; i < 8; i += 2) {
                    const Pack<float> two = from[change.interleaved ? i / 4 : i / 2];
                    turn[i] = change.interleaved && i % 4 != 0 ? make_float2(two.v[2], two.v[3]) : make_float2(two.v[0], two.v[1]);
                    turn[i + 1] = change.interleaved ? turn[i] : make_float2(two.v[2], two.v[3]);
                }
                part.rotate(change, x, turn, changes);
            }
            const int n = from + threadIdx.x / LANES;
            if (n < q_rows) {
                // Rounded first as the activations they are.
#pragma unroll
                for (int i = 0; i < 8; ++i) x[i] = to_f32(from_f32<bf16>(x[i]));
                store_row(queries + n * PITCH + part.first, x);
            } else if (n < q_rows + 2 * new_rows) {
                const bool value = row.kind == Row::VALUE;
                store_row(fresh + (value * MAX_TOKENS + row.token) * PITCH + part.first, x);
                const int t = old_end + row.token;
                const long long at = (static_cast<long long>(row.block * p.kv_heads + chunk.head) << p.block_shift) + (t & ((1 << p.block_shift) - 1));
                store_row(static_cast<T*>(value ? p.v_cache : p.k_cache) + at * HEAD_DIM + part.first, x);
            }
            from += AT_ONCE;
            if (from >= q_rows + 2 * new_rows) break;
            find(chunk, from);
            fetch();
        }
    }

    // The fragment of row tile t and columns 16k .. 16k + 15. It is loaded for every tile of keys: registers are dearer.
    __device__ __forceinline__ void load(uint32_t (&fragment)[4], int t, int k) const {
        const int lane = threadIdx.x & 31;
        ldmatrix_x4(fragment, smem_address(queries + (t * 16 + (lane & 15)) * PITCH + k * 16 + (lane >> 4) * 8));
    }

    // Puts new tokens of first .. first + 15 into a warp's keys and values, over the zeros that were loaded for them.
    __device__ __forceinline__ void insert(const Chunk& chunk, int first, unsigned char* keys) const {
        const int begin = max(old_end, first), count = min(chunk.context, first + 16) - begin;
        for (int i = threadIdx.x & 31; i < 2 * count * LANES; i += 32) {
            const int column = i % LANES * 8, n = i / LANES, value = n >= count, t = begin + n - value * count;
            *reinterpret_cast<uint4*>(keys + value * Tile::KEY_BYTES + ((t - first) * PITCH + column) * 2) =
                *reinterpret_cast<const uint4*>(fresh + (value * MAX_TOKENS + t - old_end) * PITCH + column);
        }
    }
};

struct NoRows {
    __device__ __forceinline__ NoRows(const AttnParams&, const CachedHeads&, unsigned char*) {}
};
template <typename Tile, typename Heads>
using Rows = std::conditional_t<Heads::RAW, RawRows<Tile>, NoRows>;

}  // namespace decode
