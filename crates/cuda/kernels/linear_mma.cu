// Dense linear for every GPU from sm_80 on: mma.m16n8k16 fed by cp.async. What the Hopper kernels and cuBLASLt
// do not take ends here.
//
//   out[t, r] = Σ_k x[t, k] · w[r, k], w and x both bf16 or both f16, with the epilogues of linear_dense.cuh
//
// A block computes TOKENS × ROWS results, four warps beside each other along the rows; each stage of the ring holds 64
// columns of both operands in rows of 128 bytes whose 16-byte chunks are permuted by `chunk ^ row % 8`, so that neither
// cp.async nor ldmatrix meets a bank twice. Bound: the tensor cores for many tokens (mma.sync), memory for few.
// Needs cols % 8 == 0 and 16-byte aligned rows; linear_naive.cu takes the rest.
#include "linear_dense.cuh"
#include "mma.cuh"

using namespace linear_dense;

struct LinearMmaParams {
    const void* weight;  // [rows, cols]
    const void* x;       // [tokens, cols], rows `x_stride` elements apart
    int cols;
    int x_stride;
    Output output;
};

namespace {

constexpr int K = 64;
constexpr int STAGES = 3;
constexpr int WARPS = 4;

// Byte offset of a 16-byte chunk of a tile row.
__device__ __forceinline__ uint32_t at(int row, int chunk) { return row * (K * 2) + ((chunk ^ (row & 7)) << 4); }

template <class T, int TOKENS, int ROWS>
__device__ __forceinline__ void linear_mma(const LinearMmaParams& p) {
    constexpr int STAGE_BYTES = (TOKENS + ROWS) * K * 2;
    constexpr int M = TOKENS / 16;           // m16 tiles of tokens, all in each warp
    constexpr int N = ROWS / WARPS / 8;      // n8 tiles of rows per warp
    static_assert(N % 2 == 0, "one ldmatrix brings two n8 tiles");
    extern __shared__ __align__(128) uint8_t smem_raw[];
    const uint32_t smem = static_cast<uint32_t>(__cvta_generic_to_shared(smem_raw));
    const Output& o = p.output;
    const bool gated = is_gated(o.epilogue);
    // Gated: n8 tiles alternate between gate and up rows, so that one thread ends with both.
    const int columns = gated ? ROWS / 2 : ROWS;
    const int column0 = blockIdx.x * columns, token0 = blockIdx.y * TOKENS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int steps = (p.cols + K - 1) / K;

    auto load = [&](int step) {
        const uint32_t stage = smem + step % STAGES * STAGE_BYTES;
        for (int i = threadIdx.x; i < (TOKENS + ROWS) * 8; i += WARPS * WARP) {
            const int row = i / 8, chunk = i % 8, k = step * K + chunk * 8;
            const T *src, *weight = static_cast<const T*>(p.weight);
            bool valid = k < p.cols;
            if (row < TOKENS) {
                valid = valid && token0 + row < o.tokens;
                src = static_cast<const T*>(p.x) + static_cast<size_t>(token0 + row) * p.x_stride + k;
            } else {
                const int r = row - TOKENS;
                const int column = column0 + (gated ? r / 16 * 8 + r % 8 : r);
                valid = valid && column < o.columns;
                src = weight + static_cast<size_t>(column + (gated && r % 16 >= 8 ? o.columns : 0)) * p.cols + k;
            }
            cp_async_16(stage + at(row, chunk), valid ? src : weight, valid);
        }
        cp_async_commit();
    };

    pdl_wait();
    pdl_launch();
    float acc[M][N][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        else cp_async_commit();
    }
    for (int s = 0; s < steps; s++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps) load(s + STAGES - 1);
        else cp_async_commit();
        const uint32_t stage = smem + s % STAGES * STAGE_BYTES;
#pragma unroll
        for (int kk = 0; kk < K / 16; kk++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) ldmatrix_x4(a[m], stage + at(m * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t b[4];
                const int row = TOKENS + (warp * N + n) * 8 + lane % 8 + lane / 16 * 8;
                ldmatrix_x4(b, stage + at(row, kk * 2 + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < M; m++) mma_16x8x16<T>(acc[m][n], a[m], b[0], b[1]), mma_16x8x16<T>(acc[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int token = token0 + m * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                const float2 even = {acc[m][n][2 * h], acc[m][n][2 * h + 1]}, odd = {acc[m][n + 1][2 * h], acc[m][n + 1][2 * h + 1]};
                const int column = column0 + (warp * N + n) * (gated ? 4 : 8) + 2 * (lane % 4);
                emit_pair(o, token, column, even, odd, old_pair(o, token, column));
                if (!gated) emit_pair(o, token, column + 8, odd, odd, old_pair(o, token, column + 8));
            }
        }
}

}  // namespace

#define KERNEL(name, ...)                                                                                       \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP) name(const __grid_constant__ LinearMmaParams p) { \
        linear_mma<__VA_ARGS__>(p);                                                                             \
    }
#define INSTANCE(tokens, rows)                              \
    KERNEL(linear_mma_##tokens##x##rows, bf16, tokens, rows) \
    KERNEL(linear_mma_##tokens##x##rows##_f16, f16, tokens, rows)
INSTANCE(16, 64)
INSTANCE(32, 128)
INSTANCE(64, 128)
