// A stencil reads its right neighbour, which the last element does not have.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void difference(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                       uint n [[threads_per_grid]]) {
  const uint right = repaired ? min(i + 1, n - 1) : i + 1;
  y[i] = x[right] - x[i];  // fault: bounds, x
}

template [[host_name("fault")]] [[kernel]] decltype(difference<false>) difference<false>;
template [[host_name("repaired")]] [[kernel]] decltype(difference<true>) difference<true>;
