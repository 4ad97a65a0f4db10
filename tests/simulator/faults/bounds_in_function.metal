// The row's pointer goes to a function that is not inlined and reads a fifth of four elements.
#include <metal_stdlib>
using namespace metal;

__attribute__((noinline)) float sum(device const float* row, uint n) {
  float total = 0;
  for (uint k = 0; k < n; ++k) total += row[k];  // fault: bounds, x
  return total;
}

template <bool repaired>
kernel void sum_rows(device const float* x, device float* y, uint row [[thread_position_in_grid]]) {
  y[row] = sum(x + row * 4, repaired ? 4 : 5);
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
