// Three coefficients are bound, and four are read.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void polynomial(device const float* x, device float* y, constant float* c, uint i [[thread_position_in_grid]]) {
  float value = 0;
  for (int k = repaired ? 2 : 3; k >= 0; --k) {
    value = value * x[i] + c[k];  // fault: bounds, c
  }
  y[i] = value;
}

template [[host_name("fault")]] [[kernel]] decltype(polynomial<false>) polynomial<false>;
template [[host_name("repaired")]] [[kernel]] decltype(polynomial<true>) polynomial<true>;
