// gather_rows:  out[n] = x[rows[n]]
// kv_write:     k_cache, v_cache at slots[token] = k, v of the token
// embed_dense:  out[t] = table[ids[t]] · scale, from a table of 16-bit numbers
// copy_words:   dst = src, one of which may be page-locked memory of the host
// to_f16:       out[t] = x[t] as F16, what is beyond its range as ±65504, NaN as NaN
//
// Bound by memory or latency.
#include "common.cuh"

struct GatherRowsParams {
    const void* x;    // [tokens, cols] T
    const int* rows;  // [picked] i32; outside of 0..tokens: row 0
    void* out;        // [picked, cols] T
    long long x_stride, out_stride;
    int tokens, cols;
    int packs;  // whether rows can be read in packs of 16 bytes
};

template <class T> __device__ void gather_rows(const GatherRowsParams& p) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();
    pdl_launch();
    const int picked = p.rows[blockIdx.y];
    const T* x = static_cast<const T*>(p.x) + (picked >= 0 && picked < p.tokens ? picked : 0) * p.x_stride;
    T* out = static_cast<T*>(p.out) + blockIdx.y * p.out_stride;
    if (p.packs) {
        const int at = index * Pack<T>::N;
        if (at < p.cols) store_pack(out + at, load_pack(x + at));
    } else if (index < p.cols) {
        out[index] = x[index];
    }
}

struct KvWriteParams {
    const void* k;     // [tokens, kv_heads, head_dim] T
    const void* v;     // as k
    const int* slots;  // [tokens] i32; outside of 0..blocks · block_tokens: skipped
    void* k_cache;     // [blocks, kv_heads, block_tokens, head_dim] C
    void* v_cache;     // as k_cache
    long long k_stride, k_head_stride, v_stride, v_head_stride;
    int kv_heads, head_dim, blocks, block_tokens;
};

template <class T, class C> __device__ void kv_write(const KvWriteParams& p) {
    const int token = blockIdx.y;
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    const int head = index / p.head_dim, at = index % p.head_dim;
    // In this order: see rope_kv_write.cu.
    pdl_wait();
    pdl_launch();
    const int slot = p.slots[token];
    if (head >= p.kv_heads || slot < 0 || slot / p.block_tokens >= p.blocks) return;
    const long long row = (static_cast<long long>(slot / p.block_tokens) * p.kv_heads + head) * p.block_tokens + slot % p.block_tokens;
    const T* k = static_cast<const T*>(p.k) + token * p.k_stride + head * p.k_head_stride;
    const T* v = static_cast<const T*>(p.v) + token * p.v_stride + head * p.v_head_stride;
    static_cast<C*>(p.k_cache)[row * p.head_dim + at] = from_f32<C>(to_f32(k[at]));
    static_cast<C*>(p.v_cache)[row * p.head_dim + at] = from_f32<C>(to_f32(v[at]));
}

#define KV_WRITE(T, t, C, c) \
    extern "C" __global__ void kv_write_##t##_##c(const __grid_constant__ KvWriteParams p) { kv_write<T, C>(p); }
#define KV_WRITE_FROM(T, t) KV_WRITE(T, t, float, f32) KV_WRITE(T, t, f16, f16) KV_WRITE(T, t, bf16, bf16)

struct EmbedDenseParams {
    const int* ids;     // [tokens] i32; -1 - n: drawn[n]; else outside of 0..vocab: row 0
    const int* drawn;   // [drawn_rows] i32 or null
    const void* table;  // [vocab, cols] W
    void* out;          // [tokens, cols] T
    long long out_stride;
    int drawn_rows, vocab, cols;
    float scale;
};

template <class W, class T> __device__ void embed_dense(const EmbedDenseParams& p) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (index >= p.cols) return;
    int id = p.ids[blockIdx.y];
    if (id < 0 && -1 - id < p.drawn_rows) id = p.drawn[-1 - id];
    const long long row = id >= 0 && id < p.vocab ? id : 0;
    const float value = to_f32(static_cast<const W*>(p.table)[row * p.cols + index]);
    static_cast<T*>(p.out)[blockIdx.y * p.out_stride + index] = from_f32<T>(value * p.scale);
}

#define EMBED(W, w, T, t)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) embed_dense_##w##_##t(const __grid_constant__ EmbedDenseParams p) { \
        embed_dense<W, T>(p);                                                                                      \
    }
#define EMBED_FROM(W, w) EMBED(W, w, float, f32) EMBED(W, w, f16, f16) EMBED(W, w, bf16, bf16)

struct CopyWordsParams {
    const uint32_t* src;
    uint32_t* dst;
    int words;
    int from_host;  // the source is there before the kernel in front has ended
};

extern "C" __global__ void __launch_bounds__(256) copy_words(const __grid_constant__ CopyWordsParams p) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t word = 0;
    if (p.from_host && at < p.words) word = p.src[at];
    pdl_wait();
    if (at < p.words) p.dst[at] = p.from_host ? word : p.src[at];
    // Kernels behind may read lengths and tables before their own wait: what was uploaded is there when they start.
    __threadfence();
    pdl_launch();
}

struct ToF16Params {
    const bf16* x;  // [tokens, cols], rows `x_stride` elements apart, 16-byte aligned
    f16* out;       // [tokens, cols]
    long long x_stride;
    int cols;       // a multiple of 8
};

extern "C" __global__ void __launch_bounds__(256) to_f16(const __grid_constant__ ToF16Params p) {
    const int at = (blockIdx.x * blockDim.x + threadIdx.x) * Pack<bf16>::N;
    pdl_wait();
    pdl_launch();
    if (at >= p.cols) return;
    const Pack<bf16> x = load_pack(p.x + blockIdx.y * p.x_stride + at);
    Pack<f16> out;
#pragma unroll
    for (int i = 0; i < Pack<bf16>::N; i++) {
        const float value = to_f32(x.v[i]);
        out.v[i] = from_f32<f16>(value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value);
    }
    store_pack(p.out + static_cast<long long>(blockIdx.y) * p.cols + at, out);
}

FOR_EACH_FLOAT(gather_rows, GatherRowsParams, 256)
KV_WRITE_FROM(float, f32)
KV_WRITE_FROM(f16, f16)
KV_WRITE_FROM(bf16, bf16)
EMBED_FROM(f16, f16)
EMBED_FROM(bf16, bf16)
