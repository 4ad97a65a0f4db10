// An output that was not asked for is stored all the same.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device float* y, device float* largest, constant int& wants_largest,
                     uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                     uint row [[threadgroup_position_in_grid]]) {
  device float* second = wants_largest ? largest : nullptr;
  const float sum = simd_sum(x[i]), most = simd_max(x[i]);
  if (lane != 0) return;
  y[row] = sum;
  if (!repaired || second) second[row] = most;  // fault: null
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
