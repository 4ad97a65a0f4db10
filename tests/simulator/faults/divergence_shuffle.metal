// A value is fetched from a lane that did not come along: what it gives is undefined.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void fold(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  float other = 0;
  if (repaired) other = simd_shuffle_xor(x[lane], 16);
  if (lane < 16) {
    if (!repaired) other = simd_shuffle_xor(x[lane], 16);  // fault: divergence simdgroup
    y[lane] = x[lane] + other;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(fold<false>) fold<false>;
template [[host_name("repaired")]] [[kernel]] decltype(fold<true>) fold<true>;
