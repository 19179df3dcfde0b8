// attention_naive:  softmax(mask(softcap(scale · q · kᵀ))) · v over the paged cache, for shapes and dtypes that no faster
// kernel takes
//
// A block of one warp per 32 elements of the head owns one query row of one head and walks its context token by token
// with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867). Bound by latency.
#include "common.cuh"

struct AttentionNaiveParams {
    const void* q;            // [tokens, heads, head_dim] T
    const void* k_cache;      // [blocks, kv_heads, block_tokens, head_dim] C
    const void* v_cache;      // as k_cache
    const int* block_tables;  // [seqs, max_blocks] i32
    const int* cu_seqlens;    // [seqs + 1] i32
    const int* context_lens;  // [seqs] i32
    const float* sinks;       // [heads] f32 or null
    void* out;                // [tokens, heads, head_dim] T
    long long q_stride, q_head_stride, out_stride, out_head_stride;
    int seqs, heads, kv_heads, head_dim, block_tokens, max_blocks;
    int window;  // 0: all
    float scale;
    float softcap;  // 0: none
};

constexpr int MAX_PER_THREAD = 8;

template <class T, class C> __device__ void attention_naive(const AttentionNaiveParams& p) {
    __shared__ float scratch[2][WARP];
    const int row = blockIdx.x, head = blockIdx.y;
    const int kv_head = head / (p.heads / p.kv_heads);
    pdl_wait();
    pdl_launch();
    int seq = 0;
    while (seq < p.seqs && p.cu_seqlens[seq + 1] <= row) seq++;
    T* out = static_cast<T*>(p.out) + row * p.out_stride + head * p.out_head_stride;
    const int end = seq < p.seqs ? p.context_lens[seq] - (p.cu_seqlens[seq + 1] - row - 1) : 0;
    const int start = p.window > 0 ? max(0, end - p.window) : 0;
    const T* q = static_cast<const T*>(p.q) + row * p.q_stride + head * p.q_head_stride;
    float query[MAX_PER_THREAD], value[MAX_PER_THREAD];
#pragma unroll
    for (int i = 0; i < MAX_PER_THREAD; i++) {
        const int at = i * blockDim.x + threadIdx.x;
        query[i] = at < p.head_dim ? to_f32(q[at]) : 0.0f;
        value[i] = 0.0f;
    }
    // A sink takes probability and has no value.
    float best = p.sinks ? p.sinks[head] : -INFINITY, total = p.sinks ? 1.0f : 0.0f;
    for (int t = start; t < end; t++) {
        const int block = p.block_tables[static_cast<long long>(seq) * p.max_blocks + t / p.block_tokens];
        const long long base = ((static_cast<long long>(block) * p.kv_heads + kv_head) * p.block_tokens + t % p.block_tokens) * p.head_dim;
        const C* k = static_cast<const C*>(p.k_cache) + base;
        const C* v = static_cast<const C*>(p.v_cache) + base;
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < MAX_PER_THREAD; i++) {
            const int at = i * blockDim.x + threadIdx.x;
            if (at < p.head_dim) dot += query[i] * to_f32(k[at]);
        }
        // Two halves of the scratch in turn: one barrier per token is enough.
        float score = block_sum(dot, scratch[t & 1]) * p.scale;
        if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
        const float larger = fmaxf(best, score);
        const float keep = __expf(best - larger), weight = __expf(score - larger);
        best = larger;
        total = total * keep + weight;
#pragma unroll
        for (int i = 0; i < MAX_PER_THREAD; i++) {
            const int at = i * blockDim.x + threadIdx.x;
            if (at < p.head_dim) value[i] = value[i] * keep + weight * to_f32(v[at]);
        }
    }
#pragma unroll
    for (int i = 0; i < MAX_PER_THREAD; i++) {
        const int at = i * blockDim.x + threadIdx.x;
        if (at < p.head_dim) out[at] = from_f32<T>(total > 0.0f ? value[i] / total : 0.0f);
    }
}

#define ATTENTION(T, t, C, c)                                                                                 \
    extern "C" __global__ void attention_naive_##t##_##c(const __grid_constant__ AttentionNaiveParams p) {    \
        attention_naive<T, C>(p);                                                                             \
    }
#define ATTENTION_FROM(T, t) ATTENTION(T, t, float, f32) ATTENTION(T, t, f16, f16) ATTENTION(T, t, bf16, bf16)

ATTENTION_FROM(float, f32)
ATTENTION_FROM(f16, f16)
ATTENTION_FROM(bf16, bf16)
