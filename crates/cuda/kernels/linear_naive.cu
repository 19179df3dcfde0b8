// linear_naive:  out = x · wᵀ + bias, or out += …, for weights and shapes that no faster kernel takes
//
// A warp owns one output feature and up to eight tokens: it reads its weight row once per eight tokens.
#include "common.cuh"

struct LinearNaiveParams {
    const void* x;       // [tokens, cols] T
    const void* weight;  // [rows, cols] W
    const float* bias;   // [rows] f32 or null
    void* out;           // [tokens, rows] O
    long long x_stride, out_stride;
    int tokens, rows, cols;
    int add;             // 1: out += …
};

constexpr int TOKENS = 8;

template <class T, class W, class O> __device__ void linear_naive(const LinearNaiveParams& p) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = blockIdx.y * TOKENS;
    pdl_wait();
    pdl_launch();
    if (row >= p.rows) return;
    const W* w = static_cast<const W*>(p.weight) + static_cast<long long>(row) * p.cols;
    const T* x = static_cast<const T*>(p.x) + first * p.x_stride;
    const int count = min(TOKENS, p.tokens - first);
    float sums[TOKENS] = {};
    for (int i = lane; i < p.cols; i += WARP) {
        const float weight = to_f32(w[i]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (t < count) sums[t] += weight * to_f32(x[t * p.x_stride + i]);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float sum = warp_sum(sums[t]);
        if (lane != 0 || t >= count) continue;
        O& out = static_cast<O*>(p.out)[(first + t) * p.out_stride + row];
        out = from_f32<O>(sum + (p.bias ? p.bias[row] : 0.0f) + (p.add ? to_f32(out) : 0.0f));
    }
}

#define LINEAR(T, t, W, w, O, o)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) linear_naive_##t##_##w##_##o(                              \
        const __grid_constant__ LinearNaiveParams p) {                                                             \
        linear_naive<T, W, O>(p);                                                                                  \
    }
#define LINEAR_BY(W, w)                                                                                            \
    LINEAR(float, f32, W, w, float, f32)                                                                           \
    LINEAR(f16, f16, W, w, f16, f16) LINEAR(f16, f16, W, w, float, f32)                                            \
    LINEAR(bf16, bf16, W, w, bf16, bf16) LINEAR(bf16, bf16, W, w, float, f32)

LINEAR_BY(f16, f16)
LINEAR_BY(bf16, bf16)
