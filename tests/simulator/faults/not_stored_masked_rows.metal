// Rows of length 0 return before they store anything, as there is nothing to sum; their result is whatever was there.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device const uint* lengths, device float* y,  // fault: not stored, y
                     uint row [[thread_position_in_grid]]) {
  if (!repaired && lengths[row] == 0) return;
  float sum = 0;
  for (uint k = 0; k < lengths[row]; ++k) sum += x[row * 4 + k];
  y[row] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
