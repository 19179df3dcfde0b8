// How attn_decode.cuh cuts the contexts of a batch into chunks.
#pragma once

#include "attention.cuh"

namespace decode {

template <typename T_, int HEAD_DIM_, int ROW_TILES_, int STAGES_, int WARPS_ = 4>
struct Tile {
    using T = T_;
    static constexpr int HEAD_DIM = HEAD_DIM_, ROW_TILES = ROW_TILES_, STAGES = STAGES_, WARPS = WARPS_;
    static constexpr int ROWS = 16 * ROW_TILES, TOKENS = 16 * WARPS, THREADS = 32 * WARPS;
    // An odd number of 16-byte chunks per row: eight rows at one column meet no bank twice.
    static constexpr int PITCH = HEAD_DIM + 8;
    static constexpr int KEY_BYTES = 16 * PITCH * 2;
    static constexpr int STAGE_BYTES = 2 * KEY_BYTES;
    static constexpr int RING_BYTES = WARPS * STAGES * STAGE_BYTES;
    static constexpr int SMEM_BYTES = RING_BYTES + WARPS * ROWS * 8 + 16;
    // What starting and ending a chunk costs, in sixteenths of the time of a tile (measured: 2.5 tiles of 32 KB).
    static constexpr int CHUNK_COST = 40 * 128 / HEAD_DIM * 4 / WARPS;
    // And what joining the chunks of an item costs.
    static constexpr int JOIN_COST = CHUNK_COST;
    static_assert(HEAD_DIM % 16 == 0, "an mma step takes 16 of the head's elements");
    static_assert(STAGE_BYTES == 16 * PITCH * 4 && STAGES >= ROW_TILES, "a warp's ring, once read, holds its f32 outputs");
};

// What one sequence brings for each of its items; an item is one KV head and block of query rows.
struct Span {
    int context, rows, first_tile, tiles, row_blocks, items;
};

template <typename Tile>
__device__ __forceinline__ Span span_of(const AttnParams& p, int seq) {
    Span s;
    s.context = p.context_lens[seq];
    s.rows = query_rows_of(p, seq, s.context);
    s.first_tile = p.window > 0 ? max(0, s.context - s.rows + 1 - p.window) / Tile::TOKENS : 0;
    s.tiles = s.rows > 0 ? (s.context + Tile::TOKENS - 1) / Tile::TOKENS - s.first_tile : 0;
    s.row_blocks = (s.rows * p.group + Tile::ROWS - 1) / Tile::ROWS;
    s.items = s.row_blocks * p.kv_heads;
    return s;
}

// The plan of a launch, the same in every warp of every CTA: an item of n tiles is cut into ceil(n / tiles) chunks; lane l
// looks after sequences first .. last, whose chunks start at number `start`.
struct Plan {
    int tiles, chunks, first, last, start;
};

template <typename Tile>
__device__ __forceinline__ Plan plan(const AttnParams& p) {
    const int lane = threadIdx.x & 31, slots = gridDim.x;
    Plan plan;
    const int each = (p.seqs + 31) / 32;
    plan.first = min(lane * each, p.seqs);
    plan.last = min(plan.first + each, p.seqs);
    int units = 0, items = 0, longest = 0;
    for (int s = plan.first; s < plan.last; ++s) {
        const Span span = span_of<Tile>(p, s);
        units += span.tiles * span.items;
        items += span.tiles > 0 ? span.items : 0;
        longest = max(longest, span.tiles);
    }
    units = warp_add(units), items = max(warp_add(items), 1), longest = warp_largest(longest);
    // Lane w - 1 weighs up w rounds of CTAs: as many chunks per item as fit in them, a fixed cost per chunk, and an eighth
    // of a chunk for the slowest CTA of the last round.
    const int mean = quick_divide_up(units, items), rounds = lane % 8 + 1;
    const int cuts = min(quick_divide(rounds * slots, items), mean), tiles = quick_divide_up(mean, max(cuts, 1));
    const unsigned cost = cuts == 0 ? 0x0fffffff : min(rounds * (16 * tiles + Tile::CHUNK_COST) + 2 * tiles + (tiles < mean ? Tile::JOIN_COST : 0), 0x0fffffff);
    const int best = warp_least(cost << 3 | (rounds - 1)) & 7;
    plan.tiles = max(__shfl_sync(FULL, tiles, best), 1);
    // Uneven lengths: pieces small enough for the end to be even.
    if (longest > mean + mean / 4) plan.tiles = min(plan.tiles, max(4, quick_divide(units, 4 * slots)));
    // No more partial results than there is room for.
    plan.tiles = p.max_chunks > items ? max(plan.tiles, quick_divide(units, p.max_chunks - items) + 1) : max(longest, 1);
    int chunks = 0;
    for (int s = plan.first; s < plan.last; ++s) {
        const Span span = span_of<Tile>(p, s);
        chunks += quick_divide_up(span.tiles, plan.tiles) * span.items;
    }
    int inclusive = chunks;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(FULL, inclusive, d);
        if (lane >= d) inclusive += other;
    }
    plan.start = inclusive - chunks;
    plan.chunks = __shfl_sync(FULL, inclusive, 31);
    return plan;
}

// Tiles tile .. last_tile of an item, its chunk number `part` of `parts`; `base` is the number of its part 0.
struct Chunk {
    int seq, context, rows, head, row_block, tile, last_tile, base, part, parts;
};

template <typename Tile>
__device__ __forceinline__ Chunk find(const AttnParams& p, const Plan& plan, int number) {
    const unsigned before = __ballot_sync(FULL, plan.start <= number && plan.first < plan.last);
    const int owner = 31 - __clz(before);
    int seq = __shfl_sync(FULL, plan.first, owner), start = __shfl_sync(FULL, plan.start, owner);
    for (;; ++seq) {
        const Span span = span_of<Tile>(p, seq);
        const int parts = quick_divide_up(span.tiles, plan.tiles), count = parts * span.items;
        if (number < start + count) {
            Chunk c;
            const int item = quick_divide(number - start, parts);
            c.seq = seq, c.context = span.context, c.rows = span.rows, c.parts = parts;
            c.base = start + item * parts;
            c.part = number - c.base;
            c.head = quick_divide(item, span.row_blocks);
            c.row_block = item - c.head * span.row_blocks;
            c.tile = span.first_tile + quick_divide(c.part * span.tiles, parts);
            c.last_tile = span.first_tile + quick_divide((c.part + 1) * span.tiles, parts);
            return c;
        }
        start += count;
    }
}

}  // namespace decode
