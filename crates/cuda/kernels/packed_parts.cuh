// A product of packed block weights whose rows come in several block types, one behind the other: every type has blocks of its own in
// one launch.
#pragma once

#include "packed_linear.cuh"

constexpr int MOST_PARTS = 4;

struct PackedLinearPartsParams {
    PackedLinearParams part[MOST_PARTS];  // by first_block; those that are not there have no blocks
};

// Runs `K::run<layout>` on this block's part.
template <class K> __device__ __forceinline__ void packed_parts(const PackedLinearPartsParams& p) {
    int i = 0;
    while (blockIdx.x >= p.part[i].first_block + p.part[i].blocks) i++;
    switch (Format(p.part[i].format)) {
#define PART(format) \
    case Format::format: return K::template run<LayoutOf<Format::format>>(p.part[i]);
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
#undef PART
    }
}

#define PACKED_PARTS(name, kernel)                                                                                      \
    extern "C" __global__ __launch_bounds__(512, 1) void name(const __grid_constant__ PackedLinearPartsParams p) {      \
        packed_parts<kernel>(p);                                                                                        \
    }
