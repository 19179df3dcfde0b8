// linear_wgmma:  out[t, r] = Σ_k x[t, k] · w[r, k] for 17 tokens and more, with the epilogues of linear_dense.cuh
//
// Layout   w [rows, cols] and x [tokens, cols] row-major, both bf16 or both f16, cols % 8 == 0; tensor copies bring 64-column boxes in the
//          128-byte swizzle.
// A CTA    computes TOKENS × ROWS results at a time (gated: ROWS / 2 gates and their ups): one warp fetches stages of CHUNKS × 64
//          columns, WARPGROUPS warpgroups multiply, m64 tiles of tokens by n = ROWS weight rows, which leaves the rows of
//          a tile free to divide a matrix evenly among 132 SMs.
// Clusters CT CTAs share weight rows and CR share tokens: each copies its part of the shared operand to all of them.
//          SK CTAs split the columns; each adds up and stores a share of the rows, in the order of the columns, from sums
//          that the others send into its shared memory.
// Weights are fetched before the kernel in front has ended. Where attention follows, fewer stages leave memory for its CTAs, which
// then fetch keys and values before this kernel has ended.
// Bound    reading w up to about 128 tokens, then what an SM takes in (about 98 bytes a ns), then the tensor cores.
//
// Measured (H100 80GB HBM3, 2026-11-25, graphs of launches over weights beyond L2; the best of 8 algorithms of cuBLASLt in
// brackets, without the activation):
//   tokens  6144×4096            4096×4096 add      28672×4096 gated     4096×14336 add     128256×4096 f32
//   64      18.3 µs (20.7)       14.3 µs (14.8)     80.9 µs (85.9)       43.7 µs (44.3)     385 µs (383)
//   128     21.2 µs (21.2)       15.5 µs (15.0)     84.1 µs (89.0)       50.0 µs (44.6)     388 µs (399)
//   256     24.2 µs (23.2)       18.8 µs (17.6)     96.1 µs (98.8)       56.9 µs (57.0)     467 µs (439)
//   1024    71.1 µs (70.7)       50.6 µs (45.6)     356 µs (321)         166 µs (157)
//   2048    136 µs (138)         96 µs (95)         708 µs (665)         331 µs (329)
//   8192    605 µs (598)         423 µs (386)       2793 µs (2684)       1349 µs (1356)
//   tokens  4096×1024            1024×2048 add      6144×1024 gated      1024×3072 add
//   64      5.7 µs (5.4)         5.6 µs (5.3)       5.9 µs (6.7)         6.6 µs (7.2)
//   256     6.4 µs (6.3)         6.2 µs (5.8)       8.9 µs (7.7)         8.3 µs (7.6)
// A kernel with rings of their own for weights and x, which may be longer than what is read, was measured in a graph of 28 layers
// of those four products at 256 tokens, with a read of 100 MB for attention and two norms between. µs a layer: 75.6 with the best
// tiles of one chunk a stage here; 73.4 with 128×96 at two chunks for the gated product; 72.5 with the 1024 rows on 64×64, two
// chunks, the columns split in two (alone 6.1 instead of 6.9 and 8.0 instead of 9.0; at 64 tokens 3.8 instead of 5.5, 5.5 instead of
// 7.5). Without the four 42.5. So the stages and the split came here. Lost there: one chunk a stage (72.9 to 74.2); half the
// memory, so that the next kernel's CTAs fit beside (0.5 to 1.6 more); x or weights shared in clusters of 2 and 4 (alone 8 to 20:
// 32 clusters of four do not run at once); columns split in four (alone 8.0 instead of 6.1); the next product's weights fetched into L2
// (74.6 to 77); the next kernel let in before the wait or after the products (72.5 to 72.7), and in the norms before it (73.2).
// `ferrum bench` with stages and split here against before, two rounds in turns: Qwen3-0.6B decodes 64 sequences at 33,211 and 32,905
// tok/s instead of 31,503 and 31,501, 256 at 55,766 and 55,658 instead of 55,462 and 55,425: at 256 a quarter of what the graph
// promised (the binary before was also two changes to the host's part older). Llama 3.1 8B, one run each: 4 at 770.2 (770.3), 256 at 22,558 (22,640).
// What a kernel trace of `ferrum bench` showed at 256 sequences: attention took 14 µs more than its bytes at every length of the
// context, as its CTAs found no room before q, k and v were done. With 6 stages instead of 8 before it, Qwen3-0.6B decodes 256
// sequences at 56,870 tok/s instead of 55,840, 64 at 33,990 instead of 32,750; the 8B at 256, where this kernel now stands instead of
// cuBLASLt's before attention, in 11.29 and 11.37 ms instead of 11.43 and 11.42. Lost at 256, Qwen3: room for two CTAs by 64×64 tiles
// of 4 stages 55,530; for the gated product too 56,040 (64 sequences: 34,310, but the 8B 1.6 % slower); before the residual too
// 56,700; the step as two branches of a graph, one half's attention beside the other's products, small tiles or large, 47,700 to
// 54,900. Lost, 8B at 256: this kernel for all products, 11.52 to 11.63 ms.
// At 8192 tokens the activation alone takes 227 µs behind cuBLASLt. Bands of 8 token groups, whose x stays in L2 while the
// weight passes: 2793 µs instead of 2900 for the gated product.
// At 256 tokens the products of an 8B in a row slow down as they run, whichever kernels they are: a layer of them took 202 µs
// at first and 213 to 225 a second later, by cuBLASLt alone too (128 tokens: 172 throughout). Compare variants in turns.
// Lost: equal runs of k-steps for all SMs (Stream-K), 256 tokens × 64 or 128 weight rows, rows on the M side, parts of a tile
// exchanged through L2, with and without x shared by two CTAs: at 256 tokens 28.9, 21.8, 96.5, 57.8 and 482 µs at best. The
// exchange takes 6 to 10 µs: qkv and the gated product are best without, on 96 and 112 SMs (31.8 and 107 with it on all 132).
// Also lost: sums of K parts sent to whoever finishes them, 256 x 128 tiles in clusters of 4 CTAs (of which 30 run at once, so that
// 32 take two rounds) and 256 x 64 in clusters of 2: 4096×14336 at 256 tokens 60 µs; copies shared by CR = 2 and 4 CTAs (4096×4096 at 64 tokens 16.1 µs instead of 14.1: the CTAs wait for each other
// longer than L2 needs), 256 tokens a CTA (4096×14336 at 256 tokens 67 µs), a fence of the cluster at every release (three
// times slower), one copy of all weight rows instead of two halves, and a producer that divides at every stage (25 µs
// instead of 14 at 4096×4096): what a stage costs the one fetching thread is what narrow tiles are bound by.
#include "linear_wgmma.cuh"

using namespace linear_dense;

#define KERNEL(name, T, wg, ...)                                                                                             \
    extern "C" __global__ void __launch_bounds__(wg * 128 + 32, 1) name(const __grid_constant__ LinearWgmmaParams p) {     \
        linear_wgmma<T, __VA_ARGS__>(p);                                                                                     \
    }
// TOKENS, ROWS, WARPGROUPS, CT, CR, SK, CHUNKS, STAGES
#define INSTANCE(t, n, wg, ct, cr, sk, c, s)                                                                                   \
    KERNEL(linear_wgmma_##t##x##n##_c##ct##x##cr##_k##sk, bf16, wg, t, n, wg, ct, cr, sk, c, s)                                 \
    KERNEL(linear_wgmma_##t##x##n##_c##ct##x##cr##_k##sk##_f16, f16, wg, t, n, wg, ct, cr, sk, c, s)

INSTANCE(64, 32, 1, 1, 1, 1, 1, 16)
INSTANCE(64, 48, 1, 1, 1, 1, 1, 14)
INSTANCE(64, 64, 1, 1, 1, 1, 1, 12)
INSTANCE(64, 64, 1, 1, 1, 2, 2, 6)
INSTANCE(64, 96, 1, 1, 1, 1, 1, 10)
INSTANCE(64, 112, 1, 1, 1, 1, 1, 9)
INSTANCE(64, 128, 1, 1, 1, 1, 1, 8)
INSTANCE(64, 192, 1, 1, 1, 1, 1, 6)
INSTANCE(64, 224, 1, 1, 1, 1, 1, 5)
INSTANCE(128, 32, 2, 1, 1, 1, 1, 10)
INSTANCE(128, 48, 2, 1, 1, 1, 1, 9)
INSTANCE(128, 64, 2, 1, 1, 1, 1, 8)
INSTANCE(128, 64, 2, 2, 1, 1, 1, 8)
INSTANCE(128, 96, 2, 2, 1, 1, 1, 7)
INSTANCE(128, 96, 2, 1, 1, 1, 2, 4)
INSTANCE(128, 112, 2, 1, 1, 1, 1, 7)
INSTANCE(128, 128, 2, 1, 1, 1, 1, 6)
INSTANCE(128, 192, 2, 1, 1, 1, 1, 5)
INSTANCE(128, 224, 2, 2, 1, 1, 1, 4)
INSTANCE(128, 256, 2, 1, 1, 1, 1, 4)
