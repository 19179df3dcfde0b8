// sample:           draws the next token of every row as crates/kernels/src/ops/sample.rs defines it, where no filter is set
// sample_filtered:  the same for rows with top-k, top-p or min-p
// take_largest:     the ids of candidates that linear's ARGMAX left, and zeros in their places
//
// The first two run over all rows, because parameters are in device memory, and each leaves the other's rows alone.
//
// sample takes one read: the largest score (logit, or logit / temperature + Gumbel noise) of all blocks of a row, as many as
// fill the device. Bound by memory where there are many rows, by latency where there is one.
//
// sample_filtered gives a row to one cluster of up to eight blocks, each with one slice of the vocabulary in shared memory.
// Top-k and top-p cut the descending order of the logits, without sorting: the key at the cut is found digit by digit
// (11 + 11 + 10 bits) in histograms of counts and of probability mass over all slices. Mass is counted in units of 2⁻³¹ of
// the likeliest token's, as integers: sums do not depend on the order of additions, so neither does the draw. Only tokens
// before the cut get noise. Devices without clusters (before sm_90) use one block for a row. Bound by the latency of the
// cluster's barriers and of additions in shared memory.
#include "candidate.cuh"
#include "cluster.cuh"
#include "common.cuh"
#include "noise.cuh"

struct SampleRow {  // SampleParams of ops/sample.rs
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k, position;
    uint64_t seed;
    int counts_row;
    uint32_t padding;
};
static_assert(sizeof(SampleRow) == 48, "uploaded by the host as 48 bytes");

struct SampleParams {
    const float* logits;    // [seqs, vocab] f32
    const SampleRow* rows;  // [seqs] or null: all greedy, without penalties
    int* counts;            // [counts_rows, vocab] i32 or null
    int* out;               // [seqs] i32
    unsigned long long* joined;  // [seqs, 2] zero: best candidate of the blocks so far, and how many those are; zero afterwards
    long long logits_stride, counts_stride;
    int seqs, counts_rows, vocab;
    int packs;    // whether rows of logits and counts can be read in packs of 16 bytes
    int part;     // sample: elements of a block, a multiple of 4
    int parts;    // sample: blocks of a row
    int slice;    // sample_filtered: elements of a block, a multiple of 4
    int cluster;  // sample_filtered: blocks of a row, a power of two
    int cached;   // sample_filtered: whether shared memory has room for a slice
};

constexpr int PART_THREADS = 256;
constexpr int THREADS = 512;
constexpr int MAX_CLUSTER = 8;
constexpr int BINS = 2048;
constexpr int PER_THREAD = BINS / THREADS;
constexpr int IN_PROMPT = 1 << 30;

// Of one digit of the keys: how many tokens have it, and their mass. While a block adds up, its bits from the 16th on are in
// `high` and the others in `low`, without a carry between them; the cluster's sums are plain 64-bit numbers in two halves.
struct Histogram {
    uint32_t count[BINS], low[BINS], high[BINS];
};
constexpr int LOW_BITS = 15;
// The mass of the likeliest token. Blocks add it up to 65 536 times, or with the second one 2¹⁹ times.
constexpr float MASS_ONE = 2147483648.0f, MASS_ONE_LONG = 268435456.0f;
constexpr int LONG = 65536;

struct Shared {
    uint64_t reduced[2][THREADS / WARP];
    uint64_t best[2][2];
    uint32_t tied;
    // The digit where the cut lies, and what comes before it.
    uint32_t digit, digit_count;
    uint64_t before_count, before_mass, digit_mass;
};

// ---- numbers

__device__ __forceinline__ float penalize(float logit, int count, const SampleRow& r) {
    const int generated = count & (IN_PROMPT - 1);
    if (count != 0) logit = logit > 0.0f ? __fdiv_rn(logit, r.repetition_penalty) : logit * r.repetition_penalty;
    if (generated > 0) logit -= r.presence_penalty + r.frequency_penalty * static_cast<float>(generated);
    return logit;
}

// ---- reductions

// The largest values over the cluster, in every thread. `turn` alternates between calls, so that one barrier is enough.
__device__ void cluster_max(uint64_t& x, uint64_t& y, Shared& s, int turn, int cluster) {
    auto larger = [](uint64_t& value, int lanes) {
#pragma unroll
        for (int offset = lanes / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(FULL, value, offset));
    };
    larger(x, WARP);
    larger(y, WARP);
    if (threadIdx.x % WARP == 0) s.reduced[0][threadIdx.x / WARP] = x, s.reduced[1][threadIdx.x / WARP] = y;
    __syncthreads();
    x = s.reduced[0][threadIdx.x % (THREADS / WARP)];
    y = s.reduced[1][threadIdx.x % (THREADS / WARP)];
    larger(x, THREADS / WARP);
    larger(y, THREADS / WARP);
    if (threadIdx.x == 0) s.best[turn][0] = x, s.best[turn][1] = y;
    cluster_sync();
#pragma unroll
    for (int rank = 0; rank < MAX_CLUSTER; rank++) {
        if (rank >= cluster) break;
        x = max(x, of_rank(s.best[turn][0], rank));
        y = max(y, of_rank(s.best[turn][1], rank));
    }
}

// ---- the cut

struct Cut {
    uint32_t key;         // of the last token that is kept, or less than it and more than the next one's
    uint32_t ties, kept;  // tokens with that key, and how many of them are kept, lowest ids first
    uint64_t mass;        // of all that are kept
};

// What is to be reached from the top: a number of tokens, or a fraction of the mass (0: of tokens).
struct Target {
    uint64_t tokens;
    double fraction;
    uint64_t mass;  // the fraction's mass; known after the first digit if it was 0 before
};

__device__ __forceinline__ uint64_t reach(double fraction, uint64_t total) {
    return max(uint64_t(1), min(total, static_cast<uint64_t>(ceil(fraction * static_cast<double>(total)))));
}

// Finds the digit where the target is reached when the bins are summed from the highest down, over all blocks of the
// cluster. The result is in `s`, the same in every block.
__device__ void find_digit(Shared& s, Histogram& h, Target& target, uint64_t before_count, uint64_t before_mass, int rank, int cluster) {
    cluster_sync();
    // Each block sums its share of the bins; nobody else reads that share before the next barrier.
    const int share = BINS / cluster;
    for (int bin = rank * share + threadIdx.x; bin < (rank + 1) * share; bin += THREADS) {
        uint32_t count = 0;
        uint64_t mass = 0;
#pragma unroll
        for (int other = 0; other < MAX_CLUSTER; other++) {
            if (other >= cluster) break;
            count += of_rank(h.count[bin], other);
            mass += (static_cast<uint64_t>(of_rank(h.high[bin], other)) << LOW_BITS) + of_rank(h.low[bin], other);
        }
        h.count[bin] = count;
        h.low[bin] = static_cast<uint32_t>(mass);
        h.high[bin] = static_cast<uint32_t>(mass >> 32);
    }
    cluster_sync();
    uint32_t count[PER_THREAD];
    uint64_t mass[PER_THREAD], count_sum = 0, mass_sum = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        const int bin = BINS - 1 - (threadIdx.x * PER_THREAD + j), owner = bin / share;
        count[j] = of_rank(h.count[bin], owner);
        mass[j] = static_cast<uint64_t>(of_rank(h.high[bin], owner)) << 32 | of_rank(h.low[bin], owner);
        count_sum += count[j];
        mass_sum += mass[j];
    }
    // Inclusive sums over the threads.
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint64_t counts = count_sum, masses = mass_sum;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const uint64_t c = __shfl_up_sync(FULL, counts, offset), m = __shfl_up_sync(FULL, masses, offset);
        if (lane >= offset) counts += c, masses += m;
    }
    if (lane == WARP - 1) s.reduced[0][warp] = counts, s.reduced[1][warp] = masses;
    __syncthreads();
    uint64_t total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; w++) {
        if (w < warp) counts += s.reduced[0][w], masses += s.reduced[1][w];
        total += s.reduced[1][w];
    }
    if (target.fraction > 0.0 && target.mass == 0) target.mass = reach(target.fraction, total);
    const bool by_count = target.fraction == 0.0;
    const uint64_t wanted = by_count ? target.tokens : target.mass;
    before_count += counts - count_sum;
    before_mass += masses - mass_sum;
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        const uint64_t before = by_count ? before_count : before_mass, here = by_count ? count[j] : mass[j];
        if (before < wanted && before + here >= wanted) {
            s.digit = BINS - 1 - (threadIdx.x * PER_THREAD + j);
            s.digit_count = count[j];
            s.digit_mass = mass[j];
            s.before_count = before_count;
            s.before_mass = before_mass;
        }
        before_count += count[j];
        before_mass += mass[j];
    }
    __syncthreads();
}

// Cuts the descending order where the target is reached. Keys below `floor` lie below the cut. `h` are two histograms,
// used in turn: other blocks may still read the one before.
template <class Each, class Mass>
__device__ Cut find_cut(Shared& s, Histogram* h, Target target, bool needs_mass, uint32_t floor, Each for_each, Mass mass_of, int rank, int cluster) {
    constexpr int BITS[3] = {11, 11, 10}, SHIFT[3] = {21, 10, 0};
    uint32_t prefix = 0;
    uint64_t before_count = 0, before_mass = 0;
#pragma unroll 1
    for (int level = 0; level < 3; level++) {
        Histogram& now = h[level & 1];
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) now.count[bin] = now.low[bin] = now.high[bin] = 0;
        __syncthreads();
        const int shift = SHIFT[level], bits = BITS[level];
        for_each([&](float logit, int) {
            const uint32_t key = ordered(logit);
            if (key < floor || (level > 0 && key >> (shift + bits) != prefix)) return;
            const uint32_t bin = key >> shift & ((1u << bits) - 1);
            const uint32_t mass = needs_mass ? mass_of(logit) : 0;
            if (mass == 0 && target.fraction > 0.0) return;
            atomicAdd(&now.count[bin], 1);
            if (mass > 0) {
                atomicAdd(&now.low[bin], mass & ((1u << LOW_BITS) - 1));
                atomicAdd(&now.high[bin], mass >> LOW_BITS);
            }
        });
        find_digit(s, now, target, before_count, before_mass, rank, cluster);
        prefix = prefix << bits | s.digit;
        before_count = s.before_count;
        before_mass = s.before_mass;
        const uint32_t ties = s.digit_count;
        const bool all = ties == 1 || (target.fraction == 0.0 && before_count + ties == target.tokens);
        if (all) {
            // Every token with these digits is kept: the cut lies between them and the next ones.
            const Cut cut = {prefix << shift, ties, ties, before_mass + s.digit_mass};
            cluster_sync();
            return cut;
        }
    }
    const uint64_t ties = s.digit_count, each = max(s.digit_mass / ties, uint64_t(1));
    const uint64_t wanted = target.fraction == 0.0 ? target.tokens - before_count : (target.mass - before_mass + each - 1) / each;
    const uint64_t kept = min(max(wanted, uint64_t(1)), ties);
    const Cut cut = {prefix, static_cast<uint32_t>(ties), static_cast<uint32_t>(kept), before_mass + kept * (s.digit_mass / ties)};
    // The histograms may be used again.
    cluster_sync();
    return cut;
}

// The id of the last of `kept` tokens with this key, which are fewer than there are: by bisection over the ids.
template <class At>
__device__ int last_tied(Shared& s, uint32_t key, uint32_t kept, int first, int elements, int vocab, At at, int cluster) {
    int low = 0, high = vocab - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        uint32_t mine = 0;
        for (int i = threadIdx.x; i < elements && first + i <= middle; i += THREADS) mine += ordered(at(i)) == key;
        if (threadIdx.x == 0) s.tied = 0;
        __syncthreads();
        if (mine > 0) atomicAdd(&s.tied, mine);
        cluster_sync();
        uint32_t all = 0;
        for (int rank = 0; rank < cluster; rank++) all += of_rank(s.tied, rank);
        if (all >= kept) high = middle;
        else low = middle + 1;
        cluster_sync();
    }
    return low;
}

// What a row asks for.
struct Filters {
    bool greedy, cuts_count, cuts_mass, any;
    __device__ Filters(const SampleRow& r, int vocab) {
        greedy = !(r.temperature > 0.0f);
        cuts_count = !greedy && r.top_k > 0 && r.top_k < vocab;
        cuts_mass = !greedy && r.top_p < 1.0f;
        any = cuts_count || cuts_mass || (!greedy && r.min_p > 0.0f);
    }
};

__device__ __forceinline__ int* counts_of(const SampleParams& p, const SampleRow& r) {
    return p.counts && r.counts_row >= 0 && r.counts_row < p.counts_rows ? p.counts + r.counts_row * p.counts_stride : nullptr;
}

// Calls `use(logit, index)` for the thread's share of `elements` logits, with penalties. Negative zero, which would be less
// than zero as a key, becomes zero.
template <class Use>
__device__ __forceinline__ void read_logits(const float* logits, const int* seen, int elements, bool packs, const SampleRow& r, Use use) {
    if (packs) {
#pragma unroll 4
        for (int i = threadIdx.x * 4; i < elements; i += blockDim.x * 4) {
            Pack<float> l = load_pack(logits + i);
            if (seen) {
                const Pack<int> c = load_pack(seen + i);
#pragma unroll
                for (int j = 0; j < 4; j++) l.v[j] = penalize(l.v[j], c.v[j], r);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) use(l.v[j] + 0.0f, i + j);
        }
    } else {
        for (int i = threadIdx.x; i < elements; i += blockDim.x) use((seen ? penalize(logits[i], seen[i], r) : logits[i]) + 0.0f, i);
    }
}

// Takes a score with its noise.
__device__ __forceinline__ void take_noisy(Best& best, float s, uint32_t token, const SampleRow& r) {
    const float least = best.score - s;
    if (!(least < MAX_NOISE)) return;
    const uint32_t bits = philox(token, r.position, r.seed);
    if (!noise_is_less(bits, least)) best.take(s + gumbel(bits), token);
}

extern "C" __global__ void __launch_bounds__(PART_THREADS) sample(const __grid_constant__ SampleParams p) {
    __shared__ uint64_t scratch[PART_THREADS / WARP];
    const int row = blockIdx.x / p.parts, first = blockIdx.x % p.parts * p.part, elements = max(0, min(p.part, p.vocab - first));
    pdl_wait();
    pdl_launch();
    const SampleRow r = p.rows ? p.rows[row] : SampleRow{.top_p = 1.0f, .repetition_penalty = 1.0f, .counts_row = -1};
    const Filters filters(r, p.vocab);
    if (filters.any) return;
    int* counts = counts_of(p, r);
    const float* logits = p.logits + row * p.logits_stride + first;
    const int* seen = counts ? counts + first : nullptr;
    Best best;
    if (filters.greedy) {
        read_logits(logits, seen, elements, p.packs, r, [&](float logit, int i) { best.take(logit, first + i); });
    } else {
        const float per_temperature = __fdiv_rn(1.0f, r.temperature);
        read_logits(logits, seen, elements, p.packs, r, [&](float logit, int i) { take_noisy(best, logit * per_temperature, first + i, r); });
    }
    uint64_t x = best.as_candidate();
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(FULL, x, offset));
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < PART_THREADS / WARP; warp++) x = max(x, scratch[warp]);
    if (p.parts > 1) {
        // The block that comes last knows the best of all, and leaves zeros for the next call.
        unsigned long long* joined = p.joined + 2 * row;
        atomicMax(&joined[0], static_cast<unsigned long long>(x));
        __threadfence();
        if (atomicAdd(&joined[1], 1ull) != p.parts - 1) return;
        __threadfence();
        x = atomicExch(&joined[0], 0ull);
        joined[1] = 0;
    }
    const int token = candidate_id(x);
    p.out[row] = token;
    if (counts) counts[token] += 1;
}

__device__ void sample_filtered_row(const SampleParams& p, const SampleRow& r, const Filters& filters, int row, int rank, Shared& s, Histogram* histograms, float* cache) {
    const int first = rank * p.slice, elements = max(0, min(p.slice, p.vocab - first));
    const float* logits = p.logits + row * p.logits_stride + first;
    int* counts = counts_of(p, r);
    const int* seen = counts ? counts + first : nullptr;
    const float per_temperature = __fdiv_rn(1.0f, r.temperature);

    // One read of the slice: the largest logit.
    Best largest_of_thread;
    read_logits(logits, seen, elements, p.packs, r, [&](float logit, int i) {
        largest_of_thread.take(logit, first + i);
        if (p.cached) cache[i] = logit;
    });
    // As many tokens as there are threads are not less likely than the least of the threads' best.
    uint64_t best = largest_of_thread.as_candidate(), floor_key = ~ordered(largest_of_thread.score);
    cluster_max(best, floor_key, s, 0, p.cluster);
    const float largest = unordered(static_cast<uint32_t>(best >> 32));

    auto at = [&](int i) { return p.cached ? cache[i] : (seen ? penalize(logits[i], seen[i], r) : logits[i]) + 0.0f; };
    auto for_each = [&](auto use) {
        if (p.cached) {
#pragma unroll 2
            for (int i = threadIdx.x * 4; i < elements; i += THREADS * 4) {
                const Pack<float> l = load_pack(cache + i);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (i + j < elements) use(l.v[j], i + j);
            }
        } else {
            for (int i = threadIdx.x; i < elements; i += THREADS) use(at(i), i);
        }
    };
    const float mass_one = p.slice > LONG ? MASS_ONE_LONG : MASS_ONE;
    auto likelihood = [&](float logit) { return expf((logit - largest) * per_temperature); };
    auto mass_of = [&](float logit) { return static_cast<uint32_t>(likelihood(logit) * mass_one); };
    Cut cut = {0, 0, 0, 0};
    if (filters.cuts_count) {
        const bool all_have_tokens = p.vocab - p.slice * (p.cluster - 1) >= 4 * THREADS;
        const uint32_t floor = all_have_tokens && r.top_k <= THREADS * p.cluster ? ~static_cast<uint32_t>(floor_key) : 0;
        cut = find_cut(s, histograms, {r.top_k, 0.0, 0}, filters.cuts_mass, floor, for_each, mass_of, rank, p.cluster);
    }
    if (filters.cuts_mass) {
        // A fraction of 0 keeps one token all the same.
        Target target = {0, max(static_cast<double>(r.top_p), 1e-300), 0};
        if (filters.cuts_count) target.mass = reach(target.fraction, cut.mass);
        cut = find_cut(s, histograms, target, true, cut.key, for_each, mass_of, rank, p.cluster);
    }
    int last = p.vocab;
    if (cut.kept < cut.ties) last = last_tied(s, cut.key, cut.kept, first, elements, p.vocab, at, p.cluster);
    Best kept;
    for (int i = threadIdx.x; i < elements; i += THREADS) {
        const float logit = at(i);
        const uint32_t key = ordered(logit);
        if (key < cut.key || (key == cut.key && first + i > last)) continue;
        if (r.min_p > 0.0f && !(likelihood(logit) >= r.min_p)) continue;
        take_noisy(kept, logit * per_temperature, first + i, r);
    }
    best = kept.as_candidate();
    uint64_t unused = 0;
    cluster_max(best, unused, s, 1, p.cluster);
    if (rank == 0 && threadIdx.x == 0) {
        const int token = candidate_id(best);
        p.out[row] = token;
        if (counts) counts[token] += 1;
    }
    // Nobody goes on, or leaves, while others may read its shared memory.
    cluster_sync();
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) sample_filtered(const __grid_constant__ SampleParams p) {
    // Two histograms, then a slice of logits.
    extern __shared__ __align__(16) unsigned char dynamic[];
    __shared__ Shared s;
    Histogram* histograms = reinterpret_cast<Histogram*>(dynamic);
    float* cache = reinterpret_cast<float*>(dynamic + 2 * sizeof(Histogram));
    pdl_wait();
    pdl_launch();
    for (int row = blockIdx.x / p.cluster; row < p.seqs; row += gridDim.x / p.cluster) {
        const SampleRow r = p.rows[row];
        const Filters filters(r, p.vocab);
        if (filters.any) sample_filtered_row(p, r, filters, row, cluster_rank(), s, histograms, cache);
    }
}

struct TakeLargestParams {
    unsigned long long* largest;  // [seqs] candidates; zero afterwards
    int* out;                     // [seqs] i32
    int seqs;
};

extern "C" __global__ void __launch_bounds__(PART_THREADS) take_largest(const __grid_constant__ TakeLargestParams p) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();
    pdl_launch();
    if (row >= p.seqs) return;
    p.out[row] = candidate_id(p.largest[row]);
    p.largest[row] = 0;
}
