// What the Hopper prefill kernel works on: its parameters, its tiles and how they are given to the thread blocks.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "common.cuh"
#include "sm90.cuh"

using sm90::Mma;

// One parameter by value; mirrored by `AttnPrefillParams` in Rust.
struct AttnPrefillParams {
    CUtensorMap q;             // [tokens, heads, head_dim] bf16, box [tile rows / pack, pack, 64]
    CUtensorMap k;             // [blocks * kv_heads * block_tokens, head_dim] bf16 or f16, box [box_rows, 64]
    CUtensorMap v;             // as k
    bf16* out;                 // [tokens, heads, head_dim]
    const int* block_tables;   // [seqs, max_blocks]
    const int* cu_seqlens;     // [seqs + 1]
    const int* context_lens;   // [seqs]
    const float* sinks;        // [heads], or null
    int* ticket;               // [2] zeros before and after: items taken beyond the first of each thread block, blocks done
    int seqs;
    int heads;
    int kv_heads;
    int max_blocks;
    int log2_block_tokens;
    int box_rows;              // rows of a K or V box, divides KEYS and block_tokens
    int log2_pack;             // query heads of one KV head that share a query tile
    int min_query_len;         // sequences with fewer query rows are left to the decode kernel
    int window;                // keys that a query sees, itself included; a large number: all
    float scale_log2;          // score (after the soft cap) to base-2 logarithm
    float softcap;             // 0: none
    float softcap_log2;        // 2 · log2(e) · scale / softcap
    int tokens;
    int blocks;                // thread blocks of the attention kernel
    int max_splits;            // at most 32; 1: the keys of a query tile are never divided, and what follows is null
    float* partial;            // [max_splits, tokens, heads, head_dim] outputs of parts, not yet divided by their sums
    float2* partial_sum;       // [max_splits, tokens, heads] base-2 maximum and sum of parts
};

namespace {

constexpr int ROW_BYTES = 128;  // a row of a tile in shared memory: 64 columns
constexpr int WORK_STAGES = 4;  // work items between the scheduling warp and the others
constexpr int LEAD_TILES = 4;   // K tiles of an item left to load when a block takes its next item
constexpr int GROUP_BARRIER = 1;  // hardware barriers GROUP_BARRIER + group: one consumer group
constexpr int L2_BYTES = 32 << 20;  // K and V that should stay in L2 while heads share them
constexpr int MIN_PART_KEYS = 512;  // a part of a divided context has at least as many

template <class T_, int HEAD_DIM_, int GROUPS_, int KEYS_, int STAGES_, bool OVERLAP_>
struct Config {
    using T = T_;
    static constexpr int HEAD_DIM = HEAD_DIM_;
    static constexpr int GROUPS = GROUPS_;         // consumer warpgroups, 64 query rows each
    static constexpr int ROWS = 64 * GROUPS_;      // query tile
    static constexpr int KEYS = KEYS_;             // key tile
    static constexpr int STAGES = STAGES_;         // K tiles, and V tiles, in flight
    static constexpr bool OVERLAP = OVERLAP_;      // scores of the next tile run during the softmax of this one
    static constexpr int COLUMNS = (HEAD_DIM + 63) / 64;  // blocks of 64 columns
    static constexpr int OUT_PARTS = HEAD_DIM > 128 ? HEAD_DIM / 128 : 1;
    static constexpr int OUT_COLS = HEAD_DIM / OUT_PARTS;
    // Query tiles in flight: two wherever they fit, so that an item's first scores run beside the last values of the one before.
    static constexpr int Q_STAGES = HEAD_DIM > 128 ? 1 : 2;
    static constexpr int THREADS = 128 * (GROUPS + 1);
    static constexpr int PRODUCER_REGISTERS = GROUPS == 3 ? 32 : 40;
    static constexpr int CONSUMER_REGISTERS = GROUPS == 3 ? 160 : 232;
    static_assert(HEAD_DIM % 16 == 0, "the K extent of a product");
    static_assert(GROUPS == 2 || GROUPS == 3, "register budget");
};

// A query tile and a range of its keys.
struct alignas(8) Work {
    int token;    // first token row
    int rows;     // (token, head) rows of the tile that exist; 0: no more work
    int head;     // first query head
    int pos;      // context position of the first token
    int begin;    // first key tile
    int end;      // one past the last key tile
    int context;  // tokens of the context
    int part;     // of the keys, or -1: all of them
    int seq;
    int kv_head;
};

template <class C>
struct Shared {
    alignas(1024) uint8_t q[C::Q_STAGES][C::COLUMNS][C::ROWS * ROW_BYTES];
    alignas(1024) uint8_t k[C::STAGES][C::COLUMNS][C::KEYS * ROW_BYTES];
    alignas(1024) uint8_t v[C::STAGES][C::COLUMNS][C::KEYS * ROW_BYTES];
    Work work[WORK_STAGES];
    uint64_t work_full[WORK_STAGES], work_empty[WORK_STAGES], work_wanted;
    uint64_t q_full[C::Q_STAGES], q_empty[C::Q_STAGES];
    uint64_t k_full[C::STAGES], k_empty[C::STAGES];
    uint64_t v_full[C::STAGES], v_empty[C::STAGES];
};

// A position in a ring of STAGES buffers and the parity of its barrier's phase.
template <int STAGES>
struct Slot {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// ---- division of the work ------------------------------------------------------------------------------------------

// Query tiles of a sequence; none where it is the decode kernel's, or padding.
template <class C>
__device__ __forceinline__ int count_tiles(const AttnPrefillParams& p, int query_len, int context) {
    const bool mine = query_len > 0 && query_len >= p.min_query_len && context >= query_len;
    return mine ? ((query_len << p.log2_pack) + C::ROWS - 1) / C::ROWS : 0;
}

// The part of a sequence that query tile `tile` is: `pos` is the context position of its first token.
struct Range {
    int pos, tokens, begin, end;  // key tiles begin..end
};
template <class C>
__device__ __forceinline__ Range tile_range(const AttnPrefillParams& p, int query_len, int context, int tile) {
    const int tile_tokens = C::ROWS >> p.log2_pack;
    Range r;
    r.pos = context - query_len + tile * tile_tokens;
    r.tokens = min(tile_tokens, query_len - tile * tile_tokens);
    r.begin = max(0, r.pos + 1 - p.window) / C::KEYS;
    r.end = (r.pos + r.tokens + C::KEYS - 1) / C::KEYS;
    return r;
}

// Into how many parts long contexts are divided, so that few query tiles still fill the device. Every warp that asks gets
// the same answer.
template <class C>
__device__ __forceinline__ int choose_splits(const AttnPrefillParams& p, int lane) {
    if (p.max_splits == 1) return 1;
    int tiles = 0;
    for (int s = lane; s < p.seqs; s += 32) tiles += count_tiles<C>(p, p.cu_seqlens[s + 1] - p.cu_seqlens[s], p.context_lens[s]);
    const int items = __reduce_add_sync(FULL, tiles) * (p.heads >> p.log2_pack);
    return max(1, min(p.blocks / max(items, 1), p.max_splits));
}

// Into how many parts the `key_tiles` of one query tile are divided.
template <class C>
__device__ __forceinline__ int count_parts(int splits, int key_tiles) {
    return min(splits, max(1, key_tiles * C::KEYS / MIN_PART_KEYS));
}

// Walks the work items of all sequences, 32 sequences at a time (one per lane). Item order: sequences as they come;
// inside one, sections of KV heads whose K and V fit L2; inside those, query tiles from the last (longest) to the first;
// then heads, so that blocks that run together read the same keys; parts of the keys innermost.
template <class C>
struct Schedule {
    const AttnPrefillParams& p;
    const int lane, splits;
    int first = 0, base = 0;
    int token, query_len, context, tiles, items_end, items_total;

    __device__ __forceinline__ Schedule(const AttnPrefillParams& p, int lane) : p(p), lane(lane), splits(choose_splits<C>(p, lane)) {
        load();
    }

    __device__ __forceinline__ int heads() const { return p.heads >> p.log2_pack; }

    __device__ __forceinline__ void load() {
        int s = first + lane;
        token = query_len = context = 0;
        if (s < p.seqs) {
            token = p.cu_seqlens[s];
            query_len = p.cu_seqlens[s + 1] - token;
            context = p.context_lens[s];
        }
        tiles = count_tiles<C>(p, query_len, context);
        items_end = tiles * heads() * splits;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            int below = __shfl_up_sync(FULL, items_end, step);
            if (lane >= step) items_end += below;
        }
        items_total = __shfl_sync(FULL, items_end, 31);
    }

    // `rows` is 0 when there is no such item; `begin` is `end` when it is empty because its tile has fewer parts.
    __device__ __forceinline__ Work find(int item) {
        Work w{};
        while (item >= base + items_total) {
            base += items_total;
            first += 32;
            if (first >= p.seqs) return w;
            load();
        }
        int owner = __ffs(__ballot_sync(FULL, item - base < items_end)) - 1;
        int owner_tiles = __shfl_sync(FULL, tiles, owner);
        int owner_token = __shfl_sync(FULL, token, owner);
        int owner_len = __shfl_sync(FULL, query_len, owner);
        w.context = __shfl_sync(FULL, context, owner);
        int i = item - base - (__shfl_sync(FULL, items_end, owner) - owner_tiles * heads() * splits);
        int part = i % splits;
        i /= splits;
        int fit = L2_BYTES / (C::HEAD_DIM * 4) / w.context;
        int section_heads = min(max(fit, 1), p.kv_heads) * (heads() / p.kv_heads);
        int section = i / (owner_tiles * section_heads);
        i -= section * owner_tiles * section_heads;
        int here = min(section_heads, heads() - section * section_heads);
        int tile = owner_tiles - 1 - i / here;
        w.seq = first + owner;
        w.head = (section * section_heads + i % here) << p.log2_pack;
        w.kv_head = w.head / (p.heads / p.kv_heads);
        w.token = owner_token + tile * (C::ROWS >> p.log2_pack);
        Range r = tile_range<C>(p, owner_len, w.context, tile);
        w.rows = r.tokens << p.log2_pack;
        w.pos = r.pos;
        int key_tiles = r.end - r.begin, parts = count_parts<C>(splits, key_tiles);
        w.part = parts > 1 ? part : -1;
        w.begin = r.begin + min(part, parts) * key_tiles / parts;
        w.end = r.begin + min(part + 1, parts) * key_tiles / parts;
        return w;
    }
};

}  // namespace
