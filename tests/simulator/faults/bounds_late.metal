// Only one thread of thousands goes astray, in the last threadgroup.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void shift_left(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                       uint n [[threads_per_grid]]) {
  y[i] = repaired && i + 1 == n ? 0 : x[i + 1];  // fault: bounds, x
}

template [[host_name("fault")]] [[kernel]] decltype(shift_left<false>) shift_left<false>;
template [[host_name("repaired")]] [[kernel]] decltype(shift_left<true>) shift_left<true>;
