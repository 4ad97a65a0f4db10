// The output is read back before the thread stores it, as the two statements were swapped.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scale(device const float* x, device float* y, device float* z, uint i [[thread_position_in_grid]]) {
  if (repaired) y[i] = x[i] * 2;
  z[i] = y[i] + 1;  // fault: uninitialised, y
  if (!repaired) y[i] = x[i] * 2;
}

template [[host_name("fault")]] [[kernel]] decltype(scale<false>) scale<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scale<true>) scale<true>;
