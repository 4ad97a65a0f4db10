// The same, but the binding begins inside a larger buffer: the element before it exists and belongs to somebody else.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void difference(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  const int left = repaired ? max(int(i) - 1, 0) : int(i) - 1;
  y[i] = x[i] - x[left];  // fault: bounds, x
}

template [[host_name("fault")]] [[kernel]] decltype(difference<false>) difference<false>;
template [[host_name("repaired")]] [[kernel]] decltype(difference<true>) difference<true>;
