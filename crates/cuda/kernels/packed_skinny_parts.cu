// packed_skinny for a weight of several block types.

#include "packed_parts.cuh"
#include "packed_skinny.cuh"

template <int T> struct Skinny {
    template <class L> static __device__ __forceinline__ void run(const PackedLinearParams& p) { packed_skinny<SkinnyOf<L, T>>(p); }
};

PACKED_PARTS(packed_skinny_parts_t4, Skinny<4>)
PACKED_PARTS(packed_skinny_parts_t8, Skinny<8>)
PACKED_PARTS(packed_skinny_parts_t16, Skinny<16>)
