// rope_kv_write:  q = rotate(norm(q)) in place, cache[slot] = (rotate(norm(k)), v): everything between the qkv projection
// and attention
//
// Eight elements of a head are one thread's 16 bytes; 8, 16 or 32 neighbouring lanes own a head. A block works on one token
// and walks its heads, so that a thread computes the angles of its eight elements once: one head per thread when there
// are few tokens and only latency counts, all heads when there are many and memory is the limit.
// Heads that are no whole packs, or whose halves are none, take the kernels `…_any`: a warp owns a head in shared memory.
// Keys go to the cache alone; the k of the fused row is left as it was.
//
// H100 80GB HBM3, 2026-11-25, 32 heads over 8 KV heads of 128, BF16: 1.26 µs for 1 token, 1.4 for 16, 4.4 for 256, 21.5 for
// 2048, 78.1 for 8192 (2.58 TB/s, read and written). Lost: one head per thread at 8192 tokens: 101.9.
#include "rotary.cuh"

struct RopeKvWriteParams {
    bf16* qkv;          // [tokens, heads + 2 * kv_heads, head_dim] bf16; q is rewritten
    HeadChange change;  // but for `any`: as HeadPart wants it
    const int* slots;   // [tokens] i32, outside of the cache: not written
    void* k_cache;      // [blocks, kv_heads, block_tokens, head_dim] C
    void* v_cache;      // as k_cache
    long long token_stride, head_stride;
    int heads, kv_heads;
    int blocks, block_shift;
};

template <class C, int LANES> __device__ void rope_kv_write(const RopeKvWriteParams& p) {
    const HeadPart<LANES> part(p.change);
    const int heads_at_once = blockDim.x / LANES, all_heads = p.heads + 2 * p.kv_heads, head_dim = p.change.head_dim;
    const int token = blockIdx.x;
    float freq[8], q_weight[8], k_weight[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        freq[i] = part.turns(p.change, i) ? p.change.inv_freq[part.pair(p.change, i)] : 0.0f;
        q_weight[i] = p.change.q_weight && part.in_head ? p.change.q_weight[part.first + i] : 1.0f;
        k_weight[i] = p.change.k_weight && part.in_head ? p.change.k_weight[part.first + i] : 1.0f;
    }
    // In this order: decode attention, which runs behind this kernel, reads the cache before it waits, and relies on all
    // kernels in front of this one having ended.
    pdl_wait();
    pdl_launch();
    const int slot = p.slots[token], block = slot >> p.block_shift;
    const bool cached = slot >= 0 && block < p.blocks;
    const int position = p.change.positions[token];
    float2 turn[8];
#pragma unroll
    for (int i = 0; i < 8; i++) turn[i] = p.change.turn(position, freq[i]);
    for (int start = blockIdx.y * heads_at_once; start < all_heads; start += gridDim.y * heads_at_once) {
        const int head = start + threadIdx.x / LANES;
        const bool mine = part.in_head && head < all_heads;
        bf16* const at = p.qkv + token * p.token_stride + head * p.head_stride + part.first;
        float x[8] = {};
        if (mine) {
            const Pack<bf16> pack = load_pack(at);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = to_f32(pack.v[i]);
        }
        const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
        if (p.change.q_weight) {
            float weight[8];
#pragma unroll
            for (int i = 0; i < 8; i++) weight[i] = is_q ? q_weight[i] : k_weight[i];
            part.norm(p.change, x, weight, !is_v);
        }
        if (p.change.inv_freq) part.rotate(p.change, x, turn, !is_v);
        if (!mine) continue;
        if (is_q) {
            store_row<bf16>(at, x);
        } else if (cached) {
            const int kv_head = is_v ? head - p.heads - p.kv_heads : head - p.heads;
            const long long row = ((static_cast<long long>(block) * p.kv_heads + kv_head) << p.block_shift) + (slot & ((1 << p.block_shift) - 1));
            store_row<C>(static_cast<C*>(is_v ? p.v_cache : p.k_cache) + row * head_dim + part.first, x);
        }
    }
}

constexpr int ANY_HEAD_DIM = 512, ANY_WARPS = 4;

template <class C> __device__ void rope_kv_write_any(const RopeKvWriteParams& p) {
    __shared__ float rows[ANY_WARPS][ANY_HEAD_DIM];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int token = blockIdx.x, head = blockIdx.y * ANY_WARPS + warp;
    const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
    // In this order: as above.
    pdl_wait();
    pdl_launch();
    if (head >= p.heads + 2 * p.kv_heads) return;
    float* const x = rows[warp];
    bf16* const at = p.qkv + token * p.token_stride + head * p.head_stride;
    float squares = 0.0f;
    for (int i = lane; i < p.change.head_dim; i += WARP) {
        x[i] = to_f32(at[i]);
        squares += x[i] * x[i];
    }
    if (p.change.q_weight && !is_v) {
        const float* const weight = is_q ? p.change.q_weight : p.change.k_weight;
        const float factor = rsqrtf(warp_sum(squares) / p.change.head_dim + p.change.eps);
        for (int i = lane; i < p.change.head_dim; i += WARP) x[i] *= factor * weight[i];
    }
    __syncwarp();
    const int position = p.change.positions[token], slot = p.slots[token], block = slot >> p.block_shift;
    for (int pair = lane; p.change.inv_freq && !is_v && pair < p.change.pairs; pair += WARP) {
        const float2 turn = rotation(position, p.change.inv_freq[pair]);
        const int low = p.change.interleaved ? 2 * pair : pair, high = p.change.interleaved ? 2 * pair + 1 : pair + p.change.pairs;
        const float a = x[low], b = x[high];
        x[low] = (a * turn.x - b * turn.y) * p.change.scale;
        x[high] = (a * turn.y + b * turn.x) * p.change.scale;
    }
    __syncwarp();
    if (is_q) {
        for (int i = lane; i < p.change.head_dim; i += WARP) at[i] = from_f32<bf16>(x[i]);
    } else if (slot >= 0 && block < p.blocks) {
        const int kv_head = is_v ? head - p.heads - p.kv_heads : head - p.heads;
        const long long row = ((static_cast<long long>(block) * p.kv_heads + kv_head) << p.block_shift) + (slot & ((1 << p.block_shift) - 1));
        C* const to = static_cast<C*>(is_v ? p.v_cache : p.k_cache) + row * p.change.head_dim;
        for (int i = lane; i < p.change.head_dim; i += WARP) to[i] = from_f32<C>(x[i]);
    }
}

#define ROPE_KV_WRITE(C, c, LANES)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) rope_kv_write_##c##_x##LANES(const __grid_constant__ RopeKvWriteParams p) { \
        rope_kv_write<C, LANES>(p);                                                                                    \
    }
#define ROPE_KV_WRITE_ANY(C, c)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) rope_kv_write_##c##_any(const __grid_constant__ RopeKvWriteParams p) { \
        rope_kv_write_any<C>(p);                                                                                       \
    }
#define FOR_HEADS(C, c) ROPE_KV_WRITE(C, c, 8) ROPE_KV_WRITE(C, c, 16) ROPE_KV_WRITE(C, c, 32) ROPE_KV_WRITE_ANY(C, c)

FOR_HEADS(bf16, bf16)
FOR_HEADS(f16, f16)
FOR_HEADS(float, f32)
