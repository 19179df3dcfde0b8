// What becomes of a product whose columns of x were dealt to several parts: their sums are added in order, then bias,
// activation and residual follow. A thread makes one element. Bound by L2, where the parts still are.

#include "packed.cuh"

struct PackedCombineParams {
    const float* partials;   // [splits, tokens, weight rows] f32
    const float* bias;       // [weight rows] f32, or null
    void* out;               // [tokens, columns] bf16 or f32, rows out_stride apart
    uint32_t tokens, columns;   // columns: weight rows; gated: half of them
    uint32_t splits;
    uint32_t out_stride;
    uint32_t epilogue;       // Epilogue
    uint32_t out_f32;        // 1: out is f32; only STORE
};

extern "C" __global__ __launch_bounds__(256) void packed_combine(const __grid_constant__ PackedCombineParams p) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y;
    const bool gated = p.epilogue >= SILU_MUL;
    const size_t rows = gated ? 2 * p.columns : p.columns;
    pdl_wait();
    pdl_launch();
    if (column >= p.columns) return;
    auto sum = [&](uint32_t row) {
        const float* at = p.partials + token * rows + row;
        float v = p.bias ? p.bias[row] : 0.0f;
#pragma unroll 4
        for (uint32_t split = 0; split < p.splits; split++) v += at[split * p.tokens * rows];
        return v;
    };
    float v = sum(column);
    if (gated) v = activate(v, p.epilogue) * sum(p.columns + column);
    const size_t to = size_t(token) * p.out_stride + column;
    if (p.out_f32) {
        static_cast<float*>(p.out)[to] = v;
    } else {
        bf16* out = static_cast<bf16*>(p.out) + to;
        *out = from_f32<bf16>(p.epilogue == ADD ? to_f32(*out) + v : v);
    }
}
