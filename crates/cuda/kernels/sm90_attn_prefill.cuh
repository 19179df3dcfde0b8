// The warps of the Hopper prefill kernel: sm90_attn_prefill.cu says what they do together.
#pragma once

#include "sm90_attn_prefill_softmax.cuh"
#include "sm90_attn_prefill_work.cuh"

namespace {

// ---- producers: one warp each --------------------------------------------------------------------------------------

// Takes work items from the grid's common ticket, in the order of `Schedule`, and hands them to the other warps: late, so that
// no block sits on work that another could do, but in time to hide how long it takes.
template <class C>
__device__ __forceinline__ void schedule(const AttnPrefillParams& p, Shared<C>& s, int lane) {
    Schedule<C> items(p, lane);
    Slot<WORK_STAGES> slot;
    uint32_t wanted = 0;
    for (int item = blockIdx.x;;) {
        const Work w = items.find(item);
        if (!w.rows || w.begin < w.end) {
            sm90::barrier_wait(&s.work_empty[slot.stage], slot.parity ^ 1);
            if (lane == 0) {
                s.work[slot.stage] = w;
                sm90::barrier_arrive(&s.work_full[slot.stage]);
            }
            if (!w.rows) break;
            slot.advance();
            sm90::barrier_wait(&s.work_wanted, wanted);
            wanted ^= 1;
        }
        if (lane == 0) item = gridDim.x + atomicAdd(p.ticket, 1);
        item = __shfl_sync(FULL, item, 0);
    }
    if (lane == 0 && atomicAdd(p.ticket + 1, 1) == int(gridDim.x) - 1) {
        p.ticket[0] = 0;
        p.ticket[1] = 0;
    }
}

// Reads the next work item; every warp but the scheduling one does.
template <class C>
__device__ __forceinline__ Work receive(Shared<C>& s, Slot<WORK_STAGES>& slot) {
    sm90::barrier_wait(&s.work_full[slot.stage], slot.parity);
    const Work w = s.work[slot.stage];
    sm90::barrier_arrive(&s.work_empty[slot.stage]);
    slot.advance();
    return w;
}

// Brings the key tiles of K or V, last to first, in boxes of box_rows rows and 64 columns, one lane each. Pages beyond
// the context are replaced by its last one: their scores are masked and their values zeroed.
template <class C>
__device__ __forceinline__ void load_tiles(const AttnPrefillParams& p, const CUtensorMap* map, uint8_t (*tiles)[C::COLUMNS][C::KEYS * ROW_BYTES],
                                           uint64_t* full, uint64_t* empty, Slot<C::STAGES>& slot, const Work& w, int lane,
                                           uint64_t* wanted = nullptr) {
    const int* table = p.block_tables + size_t(w.seq) * p.max_blocks;
    const int boxes = C::KEYS / p.box_rows * C::COLUMNS;
    for (int n = w.end - 1; n >= w.begin; n--) {
        if (wanted && lane == 0 && n - w.begin == min(LEAD_TILES, w.end - w.begin) - 1) sm90::barrier_arrive(wanted);
        int row = 0;
        auto find_row = [&](int i) {
            const int pos = n * C::KEYS + i / C::COLUMNS * p.box_rows;
            const int block = table[min(pos, w.context - 1) >> p.log2_block_tokens];
            row = ((block * p.kv_heads + w.kv_head) << p.log2_block_tokens) + (pos & ((1 << p.log2_block_tokens) - 1));
        };
        if (lane < boxes) find_row(lane);  // before the wait: it is a load
        sm90::barrier_wait(&empty[slot.stage], slot.parity ^ 1);
        if (lane == 0) sm90::barrier_arrive_expect(&full[slot.stage], C::COLUMNS * C::KEYS * ROW_BYTES);
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < boxes; i += 32) {
            if (i >= 32) find_row(i);
            uint8_t* dst = tiles[slot.stage][i % C::COLUMNS] + i / C::COLUMNS * p.box_rows * ROW_BYTES;
            sm90::tma_load(dst, map, &full[slot.stage], i % C::COLUMNS * 64, row);
        }
        slot.advance();
    }
}

template <class C>
__device__ __forceinline__ void load_queries_and_keys(const AttnPrefillParams& p, Shared<C>& s, int lane) {
    Slot<WORK_STAGES> slot;
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k;
    for (;;) {
        const Work w = receive<C>(s, slot);
        if (!w.rows) break;
        sm90::barrier_wait(&s.q_empty[q.stage], q.parity ^ 1);
        if (lane == 0) sm90::barrier_arrive_expect(&s.q_full[q.stage], C::COLUMNS * C::ROWS * ROW_BYTES);
        __syncwarp();
        if (lane < C::COLUMNS) sm90::tma_load(s.q[q.stage][lane], &p.q, &s.q_full[q.stage], lane * 64, w.head, w.token);
        q.advance();
        load_tiles<C>(p, &p.k, s.k, s.k_full, s.k_empty, k, w, lane, &s.work_wanted);
    }
}

template <class C>
__device__ __forceinline__ void load_values(const AttnPrefillParams& p, Shared<C>& s, int lane) {
    Slot<WORK_STAGES> slot;
    Slot<C::STAGES> v;
    for (;;) {
        const Work w = receive<C>(s, slot);
        if (!w.rows) break;
        load_tiles<C>(p, &p.v, s.v, s.v_full, s.v_empty, v, w, lane);
    }
}

// ---- consumer ------------------------------------------------------------------------------------------------------

// Turns a group's 64 query rows from BF16 into F16, the cache's type, in place.
template <class C>
__device__ __forceinline__ void queries_to_half(uint8_t (*q)[C::ROWS * ROW_BYTES], int group, int thread) {
    constexpr int PAIRS = 64 * ROW_BYTES / 4;
    for (int i = thread; i < C::COLUMNS * PAIRS; i += 128) {
        uint8_t* pair = q[i / PAIRS] + group * 64 * ROW_BYTES + i % PAIRS * 4;
        const float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(pair));
        *reinterpret_cast<uint32_t*>(pair) = Mma<f16>::pack(x.x, x.y);
    }
    sm90::async_proxy_fence();
    sm90::named_sync(GROUP_BARRIER + group, 128);
}

// Values beyond the context may be anything, NaN too, and zero times NaN is NaN: clears rows `known`.. of a V tile. Every group
// does so for itself.
template <class C>
__device__ __forceinline__ void zero_values(uint8_t (*tile)[C::KEYS * ROW_BYTES], int known, int group, int thread) {
    const int words = (C::KEYS - known) * (ROW_BYTES / 16);
    for (int i = thread; i < words * C::COLUMNS; i += 128) {
        reinterpret_cast<uint4*>(tile[i / words] + known * ROW_BYTES)[i % words] = uint4{};
    }
    sm90::async_proxy_fence();
    sm90::named_sync(GROUP_BARRIER + group, 128);
}

// Writes a thread's two rows: their outputs divided by their sums, or both as they are where the keys are divided.
template <class C>
__device__ __forceinline__ void write_out(const AttnPrefillParams& p, const Work& w, const float (&out)[C::OUT_PARTS][C::OUT_COLS / 2],
                                          const float (&max)[2], const float (&sum)[2], int first_row, int quad) {
    constexpr int WORDS = C::OUT_COLS / 8;  // of two columns that a thread has of a row; they are 8 columns apart
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first_row + 8 * r, head = w.head + (row & ((1 << p.log2_pack) - 1));
        const bool exists = row < w.rows;
        const size_t at = size_t(w.token + (row >> p.log2_pack)) * p.heads + head;
        float total = quad_sum(sum[r]);
        if (w.part >= 0) {
            if (!exists) continue;
            const size_t part_at = size_t(w.part) * p.tokens * p.heads + at;
            if (quad == 0) p.partial_sum[part_at] = float2{max[r] * p.scale_log2, total};
#pragma unroll
            for (int i = 0; i < C::OUT_PARTS * WORDS; i++) {
                const float* pair = &out[i / WORDS][i % WORDS * 4 + 2 * r];
                *reinterpret_cast<float2*>(p.partial + part_at * C::HEAD_DIM + i * 8 + quad * 2) = float2{pair[0], pair[1]};
            }
            continue;
        }
        if (p.sinks) total += exp2_fast(p.sinks[min(head, p.heads - 1)] * LOG2_E - max[r] * p.scale_log2);
        const float inverse = 1.0f / total;
        auto word = [&](int i) {
            const float* pair = &out[i / WORDS][i % WORDS * 4 + 2 * r];
            return Mma<bf16>::pack(pair[0] * inverse, pair[1] * inverse);
        };
        bf16* dst = p.out + at * C::HEAD_DIM;
#pragma unroll
        for (int i = 0; i + 4 <= C::OUT_PARTS * WORDS; i += 4) {
            uint32_t four[4] = {word(i), word(i + 1), word(i + 2), word(i + 3)};
            quad_transpose(four, quad);
            if (exists) *reinterpret_cast<uint4*>(dst + (i + quad) * 8) = uint4{four[0], four[1], four[2], four[3]};
        }
#pragma unroll
        for (int i = C::OUT_PARTS * WORDS / 4 * 4; i < C::OUT_PARTS * WORDS; i++) {
            const uint32_t one = word(i);
            if (exists) *reinterpret_cast<uint32_t*>(dst + i * 8 + quad * 2) = one;
        }
    }
}

template <class C>
__device__ __forceinline__ void consume(const AttnPrefillParams& p, Shared<C>& s, int group) {
    using T = typename C::T;
    constexpr int LEAD = C::KEYS * ROW_BYTES;
    const int thread = threadIdx.x % 128, lane = threadIdx.x % 32, quad = lane % 4;
    const int row = group * 64 + thread / 32 * 16 + lane / 4;  // and row + 8
    float scores[C::KEYS / 2];
    float out[C::OUT_PARTS][C::OUT_COLS / 2];
    uint32_t probs[C::KEYS / 16][4];
    Slot<WORK_STAGES> slot;
    Slot<C::Q_STAGES> q;
    Slot<C::STAGES> k, v;

    auto multiply_keys = [&]() {
        const uint64_t q_tile = sm90::tile_descriptor(sm90::shared_address(s.q[q.stage][0]) + group * 64 * ROW_BYTES, 0);
        const uint64_t k_tile = sm90::tile_descriptor(sm90::shared_address(s.k[k.stage][0]), 0);
        sm90::mma_fence();
#pragma unroll
        for (int step = 0; step < C::HEAD_DIM / 16; step++) {
            Mma<T>::mma(scores, sm90::tile_at(q_tile, step / 4 * C::ROWS * ROW_BYTES + step % 4 * 32),
                        sm90::tile_at(k_tile, step / 4 * LEAD + step % 4 * 32), step > 0);
        }
        sm90::mma_commit();
    };
    auto multiply_values = [&](bool accumulate) {
        const uint64_t v_tile = sm90::tile_descriptor(sm90::shared_address(s.v[v.stage][0]), LEAD);
        sm90::mma_fence();
#pragma unroll
        for (int step = 0; step < C::KEYS / 16; step++) {
#pragma unroll
            for (int part = 0; part < C::OUT_PARTS; part++) {
                Mma<T>::mma(out[part], probs[step], sm90::tile_at(v_tile, part * 2 * LEAD + step * 16 * ROW_BYTES),
                            accumulate || step > 0);
            }
        }
        sm90::mma_commit();
    };
    auto pack = [&]() {
#pragma unroll
        for (int i = 0; i < C::KEYS / 4; i++) probs[i / 4][i % 4] = Mma<T>::pack(scores[2 * i], scores[2 * i + 1]);
    };
    auto next_item = [&]() {
        const Work w = receive<C>(s, slot);
        if (w.rows) {
            sm90::barrier_wait(&s.q_full[q.stage], q.parity);
            if constexpr (std::is_same_v<T, f16>) queries_to_half<C>(s.q[q.stage], group, thread);
            sm90::barrier_wait(&s.k_full[k.stage], k.parity);
        }
        return w;
    };

    Work w = next_item();
    if (!w.rows) return;
    multiply_keys();
    sm90::mma_wait<0>();
    sm90::pin(scores);
    for (;;) {  // `scores` are those of the last key tile of item `w`
        const int pos[2] = {w.pos + (row >> p.log2_pack), w.pos + ((row + 8) >> p.log2_pack)};
        const int group_first = w.pos + (group * 64 >> p.log2_pack), group_last = w.pos + ((group * 64 + 63) >> p.log2_pack);
        float max[2] = {-INFINITY, -INFINITY}, sum[2] = {}, factor[2];
        bool moved = false;

        auto keys_done = [&](int n) {
            if (lane == 0) {
                sm90::barrier_arrive(&s.k_empty[k.stage]);
                if (n == w.begin) sm90::barrier_arrive(&s.q_empty[q.stage]);
            }
            k.advance();
            if (n == w.begin) q.advance();
        };
        auto values_done = [&]() {
            if (lane == 0) sm90::barrier_arrive(&s.v_empty[v.stage]);
            v.advance();
        };
        auto weigh = [&](int n) {
            const int key = n * C::KEYS;
            if (p.softcap > 0) soft_cap(scores, p.softcap, p.softcap_log2);
            const int limit[2] = {pos[0] - key - quad * 2, pos[1] - key - quad * 2};
            if (key + C::KEYS - 1 > group_first) hide<true>(scores, limit);
            if (key <= group_last - p.window) {
                const int left[2] = {limit[0] - p.window, limit[1] - p.window};
                hide<false>(scores, left);
            }
            moved = softmax(scores, max, sum, factor, p.scale_log2);
        };
        auto rescale = [&]() {
            if (!moved) return;
#pragma unroll
            for (int part = 0; part < C::OUT_PARTS; part++) {
#pragma unroll
                for (int i = 0; i < C::OUT_COLS / 2; i++) out[part][i] *= factor[i / 2 % 2];
            }
        };
        auto pin_out = [&]() {
#pragma unroll
            for (int part = 0; part < C::OUT_PARTS; part++) sm90::pin(out[part]);
        };

        keys_done(w.end - 1);
        weigh(w.end - 1);
        pack();

        const int known = w.context - (w.end - 1) * C::KEYS;
        if (known < C::KEYS) {
            sm90::barrier_wait(&s.v_full[v.stage], v.parity);
            zero_values<C>(s.v[v.stage], known, group, thread);
        }

        bool started = false;
        if (C::OVERLAP && w.begin + 1 < w.end) sm90::barrier_wait(&s.k_full[k.stage], k.parity);
        for (int n = w.end - 2; n >= w.begin; n--) {
            if constexpr (C::OVERLAP) {
                multiply_keys();
                sm90::barrier_wait(&s.v_full[v.stage], v.parity);
                multiply_values(started);
                sm90::mma_wait<1>();
                sm90::pin(scores);
                keys_done(n);
                weigh(n);
                // A branch here keeps the assembler from sinking the exponentials below the wait for the values.
                sm90::pin(scores);
                sm90::pin(sum);
                if (n > w.begin) sm90::barrier_wait(&s.k_full[k.stage], k.parity);
                sm90::mma_wait<0>();
                pin_out();
                values_done();
            } else {
                sm90::barrier_wait(&s.v_full[v.stage], v.parity);
                multiply_values(started);
                sm90::barrier_wait(&s.k_full[k.stage], k.parity);
                multiply_keys();
                sm90::mma_wait<1>();
                pin_out();
                values_done();
                sm90::mma_wait<0>();
                sm90::pin(scores);
                keys_done(n);
                weigh(n);
            }
            pack();
            rescale();
            started = true;
        }
        // The last values of this item, and the first scores of the next one while this one's output is written. After the
        // last item the scores are of stale tiles, for nobody: a branch around products would cost more.
        sm90::barrier_wait(&s.v_full[v.stage], v.parity);
        multiply_values(started);
        const Work next = next_item();
        multiply_keys();
        sm90::mma_wait<1>();
        pin_out();
        values_done();
        write_out<C>(p, w, out, max, sum, row, quad);
        sm90::mma_wait<0>();
        sm90::pin(scores);
        if (!next.rows) break;
        w = next;
    }
}

template <class C>
__device__ __forceinline__ void attn_prefill(const AttnPrefillParams& p) {
    extern __shared__ __align__(1024) uint8_t dynamic[];
    Shared<C>& s = *reinterpret_cast<Shared<C>*>(dynamic);
    if (threadIdx.x == 0) {
        sm90::tma_prefetch_map(&p.q);
        sm90::tma_prefetch_map(&p.k);
        sm90::tma_prefetch_map(&p.v);
        sm90::barrier_init(&s.work_wanted, 1);
        for (int i = 0; i < WORK_STAGES; i++) {
            sm90::barrier_init(&s.work_full[i], 1);
            sm90::barrier_init(&s.work_empty[i], 128 * C::GROUPS + 64);
        }
        for (int i = 0; i < C::Q_STAGES; i++) {
            sm90::barrier_init(&s.q_full[i], 1);
            sm90::barrier_init(&s.q_empty[i], 4 * C::GROUPS);
        }
        for (int i = 0; i < C::STAGES; i++) {
            sm90::barrier_init(&s.k_full[i], 1);
            sm90::barrier_init(&s.v_full[i], 1);
            sm90::barrier_init(&s.k_empty[i], 4 * C::GROUPS);
            sm90::barrier_init(&s.v_empty[i], 4 * C::GROUPS);
        }
        sm90::barrier_init_fence();
    }
    __syncthreads();
    pdl_launch();
    pdl_wait();
    const int warpgroup = __shfl_sync(FULL, threadIdx.x / 128, 0);
    if (warpgroup == 0) {
        sm90::registers_give<C::PRODUCER_REGISTERS>();
        const int warp = __shfl_sync(FULL, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
        if (warp == 0) {
            schedule<C>(p, s, lane);
        } else if (warp == 1) {
            load_queries_and_keys<C>(p, s, lane);
        } else if (warp == 2) {
            load_values<C>(p, s, lane);
        }
    } else {
        sm90::registers_take<C::CONSUMER_REGISTERS>();
        consume<C>(p, s, warpgroup - 1);
    }
}

// Adds up the parts of divided contexts: one warp per token (blockIdx.x) and head (blockIdx.y, 8 each). Rows whose keys were
// not divided are complete already.
template <class C>
__device__ __forceinline__ void combine(const AttnPrefillParams& p) {
    constexpr int PAIRS = (C::HEAD_DIM + 63) / 64;  // of columns that a lane has
    pdl_launch();
    pdl_wait();
    const int token = blockIdx.x, head = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    int before = 0;
    for (int s = lane; s < p.seqs; s += 32) before += p.cu_seqlens[s + 1] <= token;
    const int seq = __reduce_add_sync(FULL, before), splits = choose_splits<C>(p, lane);
    if (splits == 1 || seq >= p.seqs || head >= p.heads) return;
    const int start = p.cu_seqlens[seq], query_len = p.cu_seqlens[seq + 1] - start, context = p.context_lens[seq];
    if (count_tiles<C>(p, query_len, context) == 0) return;
    const Range range = tile_range<C>(p, query_len, context, (token - start) / (C::ROWS >> p.log2_pack));
    const int parts = count_parts<C>(splits, range.end - range.begin);
    if (parts == 1) return;

    const size_t row = size_t(token) * p.heads + head, step = size_t(p.tokens) * p.heads;
    const float2 mine = lane < parts ? p.partial_sum[row + lane * step] : float2{-INFINITY, 0.0f};
    const float max = warp_max(mine.x), weight = exp2_fast(mine.x - max);
    float sum = warp_sum(mine.y * weight);
    if (p.sinks) sum += exp2_fast(p.sinks[head] * LOG2_E - max);
    float2 out[PAIRS] = {};
#pragma unroll 4
    for (int i = 0; i < parts; i++) {
        const float of_part = __shfl_sync(FULL, weight, i);
        const float* src = p.partial + (row + i * step) * C::HEAD_DIM;
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            const int column = n * 64 + lane * 2;
            if (column >= C::HEAD_DIM) continue;
            const float2 x = *reinterpret_cast<const float2*>(src + column);
            out[n].x += of_part * x.x;
            out[n].y += of_part * x.y;
        }
    }
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        const int column = n * 64 + lane * 2;
        if (column >= C::HEAD_DIM) continue;
        *reinterpret_cast<uint32_t*>(p.out + row * C::HEAD_DIM + column) = Mma<bf16>::pack(out[n].x * inverse, out[n].y * inverse);
    }
}

}  // namespace
