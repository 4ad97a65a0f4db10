// The output's row pitch is one too small: the last column of a row is the first of the next, which another threadgroup
// stores.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void copy(device const float* x, device float* y, uint2 p [[thread_position_in_grid]],
                 uint2 size [[threads_per_grid]]) {
  const uint pitch = repaired ? size.x : size.x - 1;
  y[p.y * pitch + p.x] = x[p.y * size.x + p.x];  // fault: double store grid, y
}

template [[host_name("fault")]] [[kernel]] decltype(copy<false>) copy<false>;
template [[host_name("repaired")]] [[kernel]] decltype(copy<true>) copy<true>;
