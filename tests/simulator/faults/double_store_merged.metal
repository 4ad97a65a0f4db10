// Both branches store, a compiler makes one store of the two, and every lane does.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void largest_row(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                        uint lane [[thread_index_in_simdgroup]], uint row [[threadgroup_position_in_grid]]) {
  const float sum = simd_sum(x[i]);
  if (repaired && lane != 0) return;
  if (sum > 600) {  // fault: other
    y[row] = sum;   // fault: double store simdgroup, y
  } else {
    y[row] = -sum;  // fault: other
  }
}

template [[host_name("fault")]] [[kernel]] decltype(largest_row<false>) largest_row<false>;
template [[host_name("repaired")]] [[kernel]] decltype(largest_row<true>) largest_row<true>;
