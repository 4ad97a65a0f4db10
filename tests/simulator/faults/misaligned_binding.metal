// The kernel reads float2, and the buffer is bound from its second float on: right for the type of the argument, wrong
// for the type of the access.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_pairs(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    y[i] = x[i * 2] + x[i * 2 + 1];
  } else {
    const float2 pair = ((device const float2*)x)[i];  // fault: misaligned, x
    y[i] = pair.x + pair.y;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(sum_pairs<false>) sum_pairs<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_pairs<true>) sum_pairs<true>;
