// The block types with blocks of 256 elements.

#include "packed_skinny.cuh"

PACKED_SKINNY(q2_k, Q2_K)
PACKED_SKINNY(q3_k, Q3_K)
PACKED_SKINNY(q4_k, Q4_K)
PACKED_SKINNY(q5_k, Q5_K)
PACKED_SKINNY(q6_k, Q6_K)
PACKED_SKINNY(iq4_xs, IQ4_XS)
