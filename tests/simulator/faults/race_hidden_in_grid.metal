// All threadgroups read the scale, and the last one then resets it for the next call: behind its own reads, in the
// middle of those of others.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scale(device float* factor, device const float* x, device float* y, uint i [[thread_position_in_grid]],
                  uint n [[threads_per_grid]]) {
  y[i] = x[i] * factor[0];                     // fault: other
  if (!repaired && i == n - 1) factor[0] = 1;  // fault: race grid, factor
}

template [[host_name("fault")]] [[kernel]] decltype(scale<false>) scale<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scale<true>) scale<true>;
