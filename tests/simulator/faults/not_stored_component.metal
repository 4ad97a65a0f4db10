// Three of four interleaved components are stored; the fourth, alpha, stays as it was.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void to_colour(device const float* x, device float* y,  // fault: not stored, y
                      uint i [[thread_position_in_grid]]) {
  for (uint k = 0; k < (repaired ? 4 : 3); ++k) y[i * 4 + k] = k < 3 ? x[i] : 1;
}

template [[host_name("fault")]] [[kernel]] decltype(to_colour<false>) to_colour<false>;
template [[host_name("repaired")]] [[kernel]] decltype(to_colour<true>) to_colour<true>;
