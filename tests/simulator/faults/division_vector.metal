// A vector is divided by the sizes of a grid of which one is 0.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void cell(device const uint2* x, device uint2* y, device const uint2* size, uint i [[thread_position_in_grid]]) {
  const uint2 divisor = repaired ? max(size[0], uint2(1)) : size[0];
  y[i] = x[i] / divisor;  // fault: division
}

template [[host_name("fault")]] [[kernel]] decltype(cell<false>) cell<false>;
template [[host_name("repaired")]] [[kernel]] decltype(cell<true>) cell<true>;
