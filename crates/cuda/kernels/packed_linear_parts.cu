// packed_linear for a weight of several block types.

#include "packed_parts.cuh"

template <int T> struct OnBytes {
    template <class L> static __device__ __forceinline__ void run(const PackedLinearParams& p) { packed_linear<L, Int8Product<L, T>>(p); }
};

PACKED_PARTS(packed_linear_parts_t1, OnBytes<1>)
PACKED_PARTS(packed_linear_parts_t2, OnBytes<2>)
