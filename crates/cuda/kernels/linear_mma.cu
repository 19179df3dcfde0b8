// Dense BF16 linear for every GPU from sm_80 on: mma.m16n8k16 fed by cp.async. What the Hopper kernels and cuBLASLt
// do not take ends here.
//
//   out[t, r] = Σ_k x[t, k] · w[r, k], with the epilogues of linear_dense.cuh
//
// A block computes TOKENS × ROWS results, four warps beside each other along the rows; each stage of the ring holds 64
// columns of both operands in rows of 128 bytes whose 16-byte chunks are permuted by `chunk ^ row % 8`, so that neither
// cp.async nor ldmatrix meets a bank twice. Bound: the tensor cores for many tokens (mma.sync), memory for few.
// Needs cols % 8 == 0 and 16-byte aligned rows; linear_naive.cu takes the rest.
#include "common.cuh"
#include "linear_dense.cuh"

using namespace linear_dense;

struct LinearMmaParams {
    const bf16* weight;  // [rows, cols]
    const bf16* x;       // [tokens, cols], rows `x_stride` elements apart
    int cols;
    int x_stride;
    Output output;
};

namespace {

constexpr int K = 64;
constexpr int STAGES = 3;
constexpr int WARPS = 4;

__device__ __forceinline__ void copy16(uint32_t dst, const void* src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte offset of a 16-byte chunk of a tile row.
__device__ __forceinline__ uint32_t at(int row, int chunk) { return row * (K * 2) + ((chunk ^ (row & 7)) << 4); }

template <int TOKENS, int ROWS>
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
            const bf16* src;
            bool valid = k < p.cols;
            if (row < TOKENS) {
                valid = valid && token0 + row < o.tokens;
                src = p.x + static_cast<size_t>(token0 + row) * p.x_stride + k;
            } else {
                const int r = row - TOKENS;
                const int column = column0 + (gated ? r / 16 * 8 + r % 8 : r);
                valid = valid && column < o.columns;
                src = p.weight + static_cast<size_t>(column + (gated && r % 16 >= 8 ? o.columns : 0)) * p.cols + k;
            }
            copy16(stage + at(row, chunk), valid ? src : p.weight, valid);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    pdl_wait();
    pdl_launch();
    float acc[M][N][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        else asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int s = 0; s < steps; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        if (s + STAGES - 1 < steps) load(s + STAGES - 1);
        else asm volatile("cp.async.commit_group;" ::: "memory");
        const uint32_t stage = smem + s % STAGES * STAGE_BYTES;
#pragma unroll
        for (int kk = 0; kk < K / 16; kk++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) ldmatrix4(a[m], stage + at(m * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t b[4];
                const int row = TOKENS + (warp * N + n) * 8 + lane % 8 + lane / 16 * 8;
                ldmatrix4(b, stage + at(row, kk * 2 + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < M; m++) mma(acc[m][n], a[m], b[0], b[1]), mma(acc[m][n + 1], a[m], b[2], b[3]);
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

#define INSTANCE(tokens, rows)                                                                                       \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP) linear_mma_##tokens##x##rows(const __grid_constant__ LinearMmaParams p) { \
        linear_mma<tokens, rows>(p);                                                                                 \
    }
INSTANCE(16, 64)
INSTANCE(32, 128)
INSTANCE(64, 128)
