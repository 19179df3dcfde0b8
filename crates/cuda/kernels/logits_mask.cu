// logits_mask: logits[row][t] += bias, and −∞ where bit t of the row's mask is 0, in place
//
// A block owns a slice of one row of logits, a warp 32 of them at a time: one word of the mask. Biases are few: the block goes through all
// of the row's and adds those of its slice before anybody masks. Rows that ask for nothing cost their 16 bytes. Bound by
// memory: it reads masks, 1/32 of the logits, and writes the logits it bans.
//
// H100, 2026-11-25, `testkit perf logits_mask`, masks of random bits, which no grammar makes: 256 rows of 151,936 tokens 75 µs,
// 5 of 5,000 5.0 µs, 3 of 40,003 7.3 µs. Four logits a thread, 16-byte stores and slices of 4,096: 99, 3.1 and 3.4 µs.
#include "common.cuh"

struct LogitsMaskRow {  // of ops/logits_mask.rs
    int mask;           // row of masks, or negative
    uint32_t bias_start, biases, padding;
};
static_assert(sizeof(LogitsMaskRow) == 16, "uploaded by the host as 16 bytes");

struct LogitBias {
    uint32_t token;
    float bias;
};
static_assert(sizeof(LogitBias) == 8, "uploaded by the host as 8 bytes");

struct LogitsMaskParams {
    float* logits;              // [seqs, vocab] f32, read and written
    const LogitsMaskRow* rows;  // [seqs]
    const LogitBias* biases;    // [entries] or null; the tokens of a row differ
    const uint32_t* masks;      // [masks, ⌈vocab / 32⌉] or null
    long long logits_stride, masks_stride;
    int vocab, masks_rows;
    uint32_t entries;
    int slice;  // logits of a block, a multiple of 32
};

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) logits_mask(const __grid_constant__ LogitsMaskParams p) {
    const int first = blockIdx.x * p.slice, last = min(first + p.slice, p.vocab);
    float* logits = p.logits + blockIdx.y * p.logits_stride;
    pdl_wait();
    pdl_launch();
    const LogitsMaskRow row = p.rows[blockIdx.y];
    if (p.biases) {
        const uint32_t start = min(row.bias_start, p.entries), count = min(row.biases, p.entries - start);
        for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
            const LogitBias b = p.biases[start + i];
            if (b.token < static_cast<uint32_t>(p.vocab) && static_cast<int>(b.token) >= first && static_cast<int>(b.token) < last) logits[b.token] += b.bias;
        }
        // Nobody may ban a token before its bias has been added: the sum would be of the logit from before.
        __syncthreads();
    }
    if (!p.masks || row.mask < 0 || row.mask >= p.masks_rows) return;
    const uint32_t* mask = p.masks + row.mask * p.masks_stride;
    for (int t = first + threadIdx.x; t < last; t += THREADS) {
        // The 32 threads of a warp share a word.
        if (!(mask[t / 32] >> (t % 32) & 1)) logits[t] = -INFINITY;
    }
}
