// Every lane stores the sum that all of them hold. The value is the same, the traffic is 32 times what is needed, and
// the language leaves concurrent plain stores to one element undefined.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                     uint lane [[thread_index_in_simdgroup]], uint row [[threadgroup_position_in_grid]]) {
  const float sum = simd_sum(x[i]);
  if (!repaired || lane == 0) y[row] = sum;  // fault: double store simdgroup, y
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
