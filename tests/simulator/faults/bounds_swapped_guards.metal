// The guards of a 2-d grid are swapped: with more columns than rows, rows past the end pass.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void fill(device float* y, constant uint& rows, constant uint& columns, uint2 p [[thread_position_in_grid]]) {
  if (repaired ? p.x >= columns || p.y >= rows : p.x >= rows || p.y >= columns) return;
  y[p.y * columns + p.x] = p.y;  // fault: bounds, y
}

template [[host_name("fault")]] [[kernel]] decltype(fill<false>) fill<false>;
template [[host_name("repaired")]] [[kernel]] decltype(fill<true>) fill<true>;
