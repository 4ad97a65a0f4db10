// The bias is optional and this call has none, but it is added all the same: a read through a null pointer gives 0 on
// some chips and a fault on others.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void add_bias(device const float* x, device const float* biases, constant int& has_bias, device float* y,
                     uint i [[thread_position_in_grid]]) {
  device const float* bias = has_bias ? biases : nullptr;
  if (repaired && !bias) {
    y[i] = x[i];
  } else {
    y[i] = x[i] + bias[0];  // fault: null
  }
}

template [[host_name("fault")]] [[kernel]] decltype(add_bias<false>) add_bias<false>;
template [[host_name("repaired")]] [[kernel]] decltype(add_bias<true>) add_bias<true>;
