// rope:  rotates pairs of each head by position · inv_freq, in place
//
// A thread owns one pair of one head; sine and cosine are computed once per pair and token by the threads of the first
// head's warp's neighbours through L1 alone, which is cheap beside the launch. Bound by latency for few tokens, by memory
// for many.
#include "rotary.cuh"

struct RopeParams {
    void* x;                // [tokens, heads, head_dim] T, read and written
    const int* positions;   // [tokens] i32
    const float* inv_freq;  // [pairs] f32
    long long token_stride, head_stride;
    int heads, pairs;
    int interleaved;  // 0: (i, i + pairs), 1: (2i, 2i + 1)
    float scale;      // on sine and cosine
};

template <class T> __device__ void rope(const RopeParams& p) {
    T* x = static_cast<T*>(p.x) + blockIdx.y * p.token_stride;
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    const int head = index / p.pairs, pair = index % p.pairs;
    const float freq = p.inv_freq[pair];
    pdl_wait();
    pdl_launch();
    if (head >= p.heads) return;
    const float2 turn = rotation(p.positions[blockIdx.y], freq);
    const float cos = turn.x * p.scale, sin = turn.y * p.scale;
    x += head * p.head_stride;
    T* a = x + (p.interleaved ? 2 * pair : pair);
    T* b = x + (p.interleaved ? 2 * pair + 1 : pair + p.pairs);
    const float va = to_f32(*a), vb = to_f32(*b);
    *a = from_f32<T>(va * cos - vb * sin);
    *b = from_f32<T>(va * sin + vb * cos);
}

FOR_EACH_FLOAT(rope, RopeParams, 256)
