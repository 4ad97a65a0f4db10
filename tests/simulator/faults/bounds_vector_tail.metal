// 30 floats are read as vectors of four: half of the eighth vector lies behind the buffer.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_fours(device const float* x, device float* y, constant uint& n, uint i [[thread_position_in_grid]]) {
  float4 v = 0;
  if (!repaired || i * 4 + 4 <= n) {
    v = ((device const float4*)x)[i];  // fault: bounds, x
  } else {
    for (uint k = i * 4; k < n; ++k) v.x += x[k];
  }
  y[i] = v.x + v.y + v.z + v.w;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_fours<false>) sum_fours<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_fours<true>) sum_fours<true>;
