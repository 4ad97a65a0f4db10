// The value of lane 0 is broadcast among lanes of which lane 0 is not one.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void subtract_first(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  float first = 0;
  if (repaired) first = simd_broadcast(x[lane], 0);
  if (lane == 0) {
    y[lane] = 0;
  } else {
    if (!repaired) first = simd_broadcast(x[lane], 0);  // fault: divergence simdgroup
    y[lane] = x[lane] - first;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(subtract_first<false>) subtract_first<false>;
template [[host_name("repaired")]] [[kernel]] decltype(subtract_first<true>) subtract_first<true>;
