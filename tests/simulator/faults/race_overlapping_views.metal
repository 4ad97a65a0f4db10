// Input and output are views of one buffer, half a buffer apart: what one threadgroup stores, another has yet to read.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void copy(device float* y, device const float* x, uint i [[thread_position_in_grid]],
                 uint n [[threads_per_grid]]) {
  if (!repaired) {
    y[i] = x[i];  // fault: race grid
  } else if (i < 32) {
    for (uint k = i; k < n; k += 32) y[k] = x[k];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(copy<false>) copy<false>;
template [[host_name("repaired")]] [[kernel]] decltype(copy<true>) copy<true>;
