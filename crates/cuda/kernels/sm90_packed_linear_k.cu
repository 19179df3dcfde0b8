// The block types with blocks of 256 elements.

#include "sm90_packed_linear.cuh"

SM90_PACKED_LINEAR(q2_k, Q2_K)
SM90_PACKED_LINEAR(q3_k, Q3_K)
SM90_PACKED_LINEAR(q4_k, Q4_K)
SM90_PACKED_LINEAR(q5_k, Q5_K)
SM90_PACKED_LINEAR(q6_k, Q6_K)
SM90_PACKED_LINEAR(iq4_xs, IQ4_XS)
