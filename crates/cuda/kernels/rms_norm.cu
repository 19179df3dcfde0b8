// rms_norm:      out = x / sqrt(mean(x²) + eps) · weight, row by row
// add_rms_norm:  residual += x, then rms_norm of the residual
//
// A block owns one row, read once into registers: up to four 16-byte packs per thread. Rows that are longer, or not
// aligned to 16 bytes, are read twice, element by element. Bound by memory; one row by latency.
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

constexpr int HELD = 4;

template <class T, bool ADD> __device__ void normalize(const RmsNormParams& p) {
    constexpr int N = Pack<T>::N;
    __shared__ float scratch[WARP];
    const int token = blockIdx.x / p.heads, head = blockIdx.x % p.heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride + head * p.x_head_stride;
    T* out = static_cast<T*>(p.out) + token * p.out_stride + head * p.out_head_stride;
    T* residual = static_cast<T*>(p.residual) + token * p.residual_stride;
    const int threads = blockDim.x;
    float sum = 0.0f;

    if (p.packs && p.cols <= HELD * N * threads) {
        // The weights do not depend on the kernel in front.
        float w[HELD][N];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int at = (i * threads + threadIdx.x) * N;
            if (at < p.cols)
                for (int j = 0; j < N; j++) w[i][j] = p.weight[at + j];
        }
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
            for (int j = 0; j < N; j++) v[i].v[j] = from_f32<T>(to_f32(v[i].v[j]) * scale * w[i][j]);
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

template <class T> __device__ void rms_norm(const RmsNormParams& p) { normalize<T, false>(p); }
template <class T> __device__ void add_rms_norm(const RmsNormParams& p) { normalize<T, true>(p); }

FOR_EACH_FLOAT(rms_norm, RmsNormParams, 512)
FOR_EACH_FLOAT(add_rms_norm, RmsNormParams, 512)
