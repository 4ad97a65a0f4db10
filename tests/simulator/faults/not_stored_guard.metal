// The guard is off by one: the last column of every row is never stored.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void twice(device const float* x, device float* y, constant uint& columns,  // fault: not stored, y
                  uint2 p [[thread_position_in_grid]]) {
  if (repaired ? p.x >= columns : p.x >= columns - 1) return;
  y[p.y * columns + p.x] = x[p.y * columns + p.x] * 2;
}

template [[host_name("fault")]] [[kernel]] decltype(twice<false>) twice<false>;
template [[host_name("repaired")]] [[kernel]] decltype(twice<true>) twice<true>;
