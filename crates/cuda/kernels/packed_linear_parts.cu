// packed_linear for a weight whose rows come in several block types, one behind the other: every type has blocks of its own in one
// launch.

#include "packed_linear.cuh"

constexpr int MOST_PARTS = 4;

struct PackedLinearPartsParams {
    PackedLinearParams part[MOST_PARTS];  // by first_block; those that are not there have no blocks
};

template <int T> __device__ __forceinline__ void packed_linear_parts(const PackedLinearPartsParams& p) {
    int i = 0;
    while (blockIdx.x >= p.part[i].first_block + p.part[i].blocks) i++;
    switch (Format(p.part[i].format)) {
#define PART(format) \
    case Format::format: return packed_linear<LayoutOf<Format::format>, Int8Product<LayoutOf<Format::format>, T>>(p.part[i]);
        PART(Q4_0)
        PART(Q4_1)
        PART(Q5_0)
        PART(Q5_1)
        PART(Q8_0)
        PART(Q2_K)
        PART(Q3_K)
        PART(Q4_K)
        PART(Q5_K)
        PART(Q6_K)
        PART(IQ4_NL)
        PART(IQ4_XS)
    }
}

extern "C" __global__ __launch_bounds__(512, 1) void packed_linear_parts_t1(const __grid_constant__ PackedLinearPartsParams p) {
    packed_linear_parts<1>(p);
}
extern "C" __global__ __launch_bounds__(512, 1) void packed_linear_parts_t2(const __grid_constant__ PackedLinearPartsParams p) {
    packed_linear_parts<2>(p);
}
