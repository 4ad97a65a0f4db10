// A kernel with two outputs forgets one of them where the first is trivial.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void root(device const float* x, device float* y, device float* inverse,  // fault: not stored, inverse
                 uint i [[thread_position_in_grid]]) {
  if (x[i] == 0) {
    y[i] = 0;
    if (repaired) inverse[i] = 0;
    return;
  }
  y[i] = sqrt(x[i]);
  inverse[i] = 1 / y[i];
}

template [[host_name("fault")]] [[kernel]] decltype(root<false>) root<false>;
template [[host_name("repaired")]] [[kernel]] decltype(root<true>) root<true>;
