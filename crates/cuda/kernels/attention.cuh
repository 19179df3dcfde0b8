// What the attention kernels share: their parameters and the arithmetic of a score.
#pragma once

#include "mma.cuh"

struct AttnParams {
    const bf16* q;   // [tokens, heads, head_dim] bf16, tokens q_stride elements apart
    void* k_cache;            // [blocks, kv_heads, block_tokens, head_dim] bf16, f16 or f32
    void* v_cache;            // as k_cache
    const int* block_tables;  // [seqs, max_blocks]
    const int* cu_seqlens;    // [seqs + 1]; null: every sequence has one query row
    const int* context_lens;  // [seqs], this step's tokens included
    const float* sinks;       // [heads]; null: none
    bf16* out;       // [tokens, heads, head_dim] bf16, tokens out_stride elements apart
    float* partial_out;       // decode: [max_chunks, rows of a tile, padded head_dim]
    float2* partial_state;    // decode: [max_chunks, rows of a tile] (maximum, sum)
    unsigned* tickets;        // decode: [2], zero before and after every launch
    unsigned* arrivals;       // decode: [max_chunks], zero before and after every launch
    long long q_stride;
    long long out_stride;
    int seqs;
    int kv_heads;
    int group;  // query heads per KV head
    int head_dim;
    int max_blocks;
    int block_shift;     // log2(block_tokens)
    int min_query_rows;  // sequences with fewer query rows, or more than max_query_rows, belong to another kernel
    int max_query_rows;
    int max_chunks;  // decode: pieces of context that there is room for
    int window;      // tokens that a row sees, itself included; 0: all
    float scale;
    float softcap;  // 0: none
};

constexpr float LOG2E = 1.4426950408889634f;

// Query rows of a sequence that are this kernel's to compute.
__device__ __forceinline__ int query_rows_of(const AttnParams& p, int seq, int context) {
    const int rows = p.cu_seqlens ? p.cu_seqlens[seq + 1] - p.cu_seqlens[seq] : 1;
    return rows >= p.min_query_rows && rows <= p.max_query_rows && context > 0 ? rows : 0;
}

__device__ __forceinline__ int first_token_of(const AttnParams& p, int seq) { return p.cu_seqlens ? p.cu_seqlens[seq] : seq; }

// Scores come out of the matrix product unscaled. `exponent · score` is the power of two that a capped score stands for.
struct ScoreScale {
    float exponent, cap, to_cap;
    __device__ __forceinline__ explicit ScoreScale(const AttnParams& p)
        : exponent(p.softcap > 0.0f ? LOG2E : p.scale * LOG2E), cap(p.softcap), to_cap(p.softcap > 0.0f ? p.scale / p.softcap : 0.0f) {}
    __device__ __forceinline__ float capped(float score) const { return cap > 0.0f ? cap * tanh_accurate(score * to_cap) : score; }
};

// Four outputs of one row over a part of its context, and the row's maximum and sum there.
struct Partial {
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float top = -INFINITY, sum = 0.0f;

    template <int N>
    __device__ __forceinline__ void join(const float2 (&parts)[N], const float4 (&outs)[N]) {
        float high = top;
#pragma unroll
        for (int i = 0; i < N; ++i) high = fmaxf(high, parts[i].x);
        if (high == -INFINITY) return;
        const float keep = exp2_approx(top - high);
        top = high, sum *= keep;
        out.x *= keep, out.y *= keep, out.z *= keep, out.w *= keep;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float weight = exp2_approx(parts[i].x - high);
            // What a masked part holds is not looked at.
            if (weight == 0.0f) continue;
            sum += weight * parts[i].y;
            out.x += weight * outs[i].x, out.y += weight * outs[i].y, out.z += weight * outs[i].z, out.w += weight * outs[i].w;
        }
    }
};
