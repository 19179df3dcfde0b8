// act_mul:  out = act(gate) · up on fused rows [gate | up]
// softcap:  x = cap · tanh(x / cap), in place
//
// A thread owns one pack of 16 bytes, or one element where rows are not aligned. Bound by memory.
#include "common.cuh"

struct ActMulParams {
    const void* gate_up;  // [tokens, 2 · inner] T
    void* out;            // [tokens, inner] T
    long long gate_up_stride, out_stride;
    int inner;
    int gelu;   // 0: silu, 1: gelu by the tanh approximation
    int packs;  // whether rows and halves can be read in packs of 16 bytes
};

__device__ __forceinline__ float activate(float x, bool gelu) {
    if (!gelu) return __fdividef(x, 1.0f + __expf(-x));
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    // 0.5 · (1 + tanh(y)) = sigmoid(2 y)
    return __fdividef(x, 1.0f + __expf(-2.0f * inner));
}

template <class T> __device__ void act_mul(const ActMulParams& p) {
    const T* gate = static_cast<const T*>(p.gate_up) + blockIdx.y * p.gate_up_stride;
    T* out = static_cast<T*>(p.out) + blockIdx.y * p.out_stride;
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (p.packs) {
        constexpr int N = Pack<T>::N;
        const int at = index * N;
        if (at >= p.inner) return;
        Pack<T> g = load_pack(gate + at), u = load_pack(gate + p.inner + at);
#pragma unroll
        for (int j = 0; j < N; j++) g.v[j] = from_f32<T>(activate(to_f32(g.v[j]), p.gelu) * to_f32(u.v[j]));
        store_pack(out + at, g);
    } else if (index < p.inner) {
        out[index] = from_f32<T>(activate(to_f32(gate[index]), p.gelu) * to_f32(gate[p.inner + index]));
    }
}

struct SoftcapParams {
    void* x;  // [rows, width] T, read and written
    long long stride;
    int width;
    float cap;
};

template <class T> __device__ void softcap(const SoftcapParams& p) {
    T* x = static_cast<T*>(p.x) + blockIdx.y * p.stride;
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (index < p.width) x[index] = from_f32<T>(p.cap * tanhf(to_f32(x[index]) / p.cap));
}

FOR_EACH_FLOAT(act_mul, ActMulParams, 256)
FOR_EACH_FLOAT(softcap, SoftcapParams, 256)
