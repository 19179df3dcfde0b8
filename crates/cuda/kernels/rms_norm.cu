// rms_norm:      out = x / sqrt(mean(x²) + eps) · weight, row by row
// add_rms_norm:  residual += x, then rms_norm of the residual
//
// A block owns one row, read once into registers: `_x1`, `_x2` or `_x4` packs of 16 bytes per thread. One pack is fastest for
// few rows, where latency counts; four for many, where small blocks leave more reads under way (8192 × 4096 bf16 on an H100:
// 31 % of the bandwidth with one block per multiprocessor, which is what registers for four packs times 512 threads left).
// Rows that are longer, or not aligned to 16 bytes, are read twice, element by element. Bound by memory.
#include "common.cuh"

struct RmsNormParams {
    const void* x;        // [rows / heads, heads, cols] T
    void* residual;       // [rows, cols] T, read and written; null: none
    const float* weight;  // [cols] f32
    void* out;            // as x
    long long x_stride, x_head_stride;
    long long residual_stride;
    long long out_stride, out_head_stride;
    int heads, cols;
    float eps;
    int packs;  // whether every row of x, residual, out and weight can be read in packs of 16 bytes
};

template <class T, bool ADD, int HELD> __device__ void normalize(const RmsNormParams& p) {
    constexpr int N = Pack<T>::N;
    __shared__ float scratch[WARP];
    const int token = blockIdx.x / p.heads, head = blockIdx.x % p.heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride + head * p.x_head_stride;
    T* out = static_cast<T*>(p.out) + token * p.out_stride + head * p.out_head_stride;
    T* residual = static_cast<T*>(p.residual) + token * p.residual_stride;
    const int threads = blockDim.x;
    float sum = 0.0f;

    if (p.packs && p.cols <= HELD * N * threads) {
        // The weights do not depend on the kernel in front. Where there is one pack, there is room to hold them.
        Pack<float> early[N / 4];
        if (HELD == 1 && threadIdx.x * N < p.cols)
#pragma unroll
            for (int j = 0; j < N / 4; j++) early[j] = load_pack(p.weight + threadIdx.x * N + 4 * j);
        pdl_wait();
        pdl_launch();
        Pack<T> v[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int at = (i * threads + threadIdx.x) * N;
            if (at < p.cols) v[i] = load_pack(x + at);
        }
        if (ADD) {
            Pack<T> r[HELD];
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int at = (i * threads + threadIdx.x) * N;
                if (at < p.cols) r[i] = load_pack(residual + at);
            }
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int at = (i * threads + threadIdx.x) * N;
                if (at >= p.cols) continue;
#pragma unroll
                for (int j = 0; j < N; j++) v[i].v[j] = from_f32<T>(to_f32(v[i].v[j]) + to_f32(r[i].v[j]));
                store_pack(residual + at, v[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if ((i * threads + threadIdx.x) * N >= p.cols) continue;
#pragma unroll
            for (int j = 0; j < N; j++) sum += to_f32(v[i].v[j]) * to_f32(v[i].v[j]);
        }
        const float scale = rsqrtf(block_sum(sum, scratch) / p.cols + p.eps);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int at = (i * threads + threadIdx.x) * N;
            if (at >= p.cols) continue;
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (HELD > 1 && j % 4 == 0) early[j / 4] = load_pack(p.weight + at + j);
                v[i].v[j] = from_f32<T>(to_f32(v[i].v[j]) * scale * early[j / 4].v[j % 4]);
            }
            store_pack(out + at, v[i]);
        }
        return;
    }

    pdl_wait();
    pdl_launch();
    for (int i = threadIdx.x; i < p.cols; i += threads) {
        T v = x[i];
        if (ADD) residual[i] = v = from_f32<T>(to_f32(v) + to_f32(residual[i]));
        sum += to_f32(v) * to_f32(v);
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / p.cols + p.eps);
    for (int i = threadIdx.x; i < p.cols; i += threads) {
        const T v = ADD ? residual[i] : x[i];
        out[i] = from_f32<T>(to_f32(v) * scale * p.weight[i]);
    }
}

#define NORMS(held)                                                                                              \
    template <class T> __device__ void rms_norm_x##held(const RmsNormParams& p) { normalize<T, false, held>(p); }     \
    template <class T> __device__ void add_rms_norm_x##held(const RmsNormParams& p) { normalize<T, true, held>(p); }  \
    FOR_EACH_FLOAT(rms_norm_x##held, RmsNormParams, 512)                                                          \
    FOR_EACH_FLOAT(add_rms_norm_x##held, RmsNormParams, 512)

NORMS(1)
NORMS(2)
NORMS(4)
