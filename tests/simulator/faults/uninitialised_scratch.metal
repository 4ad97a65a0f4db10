// A workspace holds a sum and a count for each row; the count is read, and only the sum was stored.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void mean(device const float* x, device float* scratch, device float* y, uint row [[thread_position_in_grid]]) {
  float sum = 0;
  for (uint k = 0; k < 4; ++k) sum += x[row * 4 + k];
  scratch[row * 2] = sum;
  if (repaired) scratch[row * 2 + 1] = 4;
  y[row] = sum / scratch[row * 2 + 1];  // fault: uninitialised, scratch
}

template [[host_name("fault")]] [[kernel]] decltype(mean<false>) mean<false>;
template [[host_name("repaired")]] [[kernel]] decltype(mean<true>) mean<true>;
