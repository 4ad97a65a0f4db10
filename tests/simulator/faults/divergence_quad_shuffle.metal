// Two lanes of a quad ask the two that have gone another way.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void rotate_quads(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  float other = 0;
  if (repaired) other = quad_shuffle_xor(x[lane], 2);
  if (lane % 4 < 2) {
    if (!repaired) other = quad_shuffle_xor(x[lane], 2);  // fault: divergence simdgroup
    y[lane] = other;
  } else {
    y[lane] = x[lane];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(rotate_quads<false>) rotate_quads<false>;
template [[host_name("repaired")]] [[kernel]] decltype(rotate_quads<true>) rotate_quads<true>;
