// linear_stream:  out[t, r] = Σ_k x[t, k] · w[r, k], tokens ≤ 16, with an RMSNorm of x in front if asked for and the
// epilogues of linear_dense.cuh behind
//
// Layout   w [rows, cols] row-major, cols % 64 == 0, and x [tokens, cols], both bf16 or both f16.
// A CTA    owns an even share of the output columns, in units of 8 (gated: 8 gate rows and their 8 up rows), and walks
//          over it in slabs of UNITS units; a slab is a chain of stages of CHUNKS × 64 columns.
// Warps    one fetches: one tensor copy per unit and stage, as far ahead as the ring is long, from before the kernel in
//          front has ended. Eight multiply: they split the columns of a stage (KW of them) and its rows (8 / KW), x comes
//          from L2 straight into registers one stage ahead, partial sums meet in shared memory in a fixed order.
// The norm is applied where it costs nothing: x · g when x is loaded, 1 / rms when the sums are done.
// Bound    reading w: the ring of every SM holds 96 … 192 KB in flight.
//
// Measured (H100 80GB HBM3, 2026-11-25, graphs of launches over weights beyond L2, whole launches; cuBLASLt's best of 8
// algorithms in brackets, without norm and activation):
//   tokens  6144×4096 + norm  4096×4096 add   28672×4096 gated + norm  4096×14336 add   128256×4096 f32
//   1       17.5 µs (20.7)    11.8 µs (16.7)  78.8 µs, 2.98 TB/s (82)  40.9 µs (46.1)   345 µs, 3.05 TB/s (353)
//   8       18.3 µs (20.8)    12.9 µs (16.4)  80.7 µs (82.8)           41.3 µs (46.1)   354 µs (357)
//   16      19.4 µs (21.4)    13.1 µs (14.2)  82.7 µs (83.3)           41.7 µs (46.4)   361 µs (361)
//   tokens  4096×1024 + norm  1024×2048 add   6144×1024 gated + norm   1024×3072 add
//   1       4.5 µs (5.7)      3.0 µs (5.5)    5.6 µs (6.8)             3.9 µs (7.3)
// Lost: a plain bulk copy per row into padded rows (gate and up of an 8B 84 µs instead of 78); x asked for one stage ahead
// instead of two (6144×4096 at 8 tokens 19.5 µs instead of 17.8).
#include "linear_stream.cuh"

using namespace linear_dense;

#define KERNEL(name, ...)                                                                                                \
    extern "C" __global__ void __launch_bounds__(288, 1) name(const __grid_constant__ LinearStreamParams p) {             \
        linear_stream<__VA_ARGS__>(p);                                                                                    \
    }
// TOKEN_TILES of 8, UNITS, CHUNKS, KW, STAGES
#define INSTANCE(t, u, c, kw, s)                                                                                         \
    KERNEL(linear_stream_t##t##_u##u##_c##c, bf16, t, u, c, kw, s, false)                                                 \
    KERNEL(linear_stream_t##t##_u##u##_c##c##_norm, bf16, t, u, c, kw, s, true)                                           \
    KERNEL(linear_stream_t##t##_u##u##_c##c##_f16, f16, t, u, c, kw, s, false)

INSTANCE(1, 2, 8, 8, 6)
INSTANCE(1, 4, 8, 8, 6)
INSTANCE(1, 6, 8, 8, 4)
INSTANCE(2, 2, 8, 8, 6)
INSTANCE(2, 4, 8, 8, 5)
INSTANCE(2, 6, 8, 8, 3)
