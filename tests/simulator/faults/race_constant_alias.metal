// The scale is bound as constant and lies in the buffer that the kernel stores to.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void multiply(device float* x, constant float* scale, uint i [[thread_position_in_grid]]) {
  if (!repaired) {
    x[i] *= scale[0];  // fault: race grid
  } else if (i > 0) {
    x[i] *= scale[0];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(multiply<false>) multiply<false>;
template [[host_name("repaired")]] [[kernel]] decltype(multiply<true>) multiply<true>;
