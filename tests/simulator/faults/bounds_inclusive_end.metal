// Segment k ends where k + 1 begins; taking the end as inclusive reads one element of the next segment, and past the
// buffer for the last.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void last_of_segment(device const float* x, device const uint* ends, device float* y,
                            uint segment [[thread_position_in_grid]]) {
  y[segment] = x[ends[segment] - (repaired ? 1 : 0)];  // fault: bounds, x
}

template [[host_name("fault")]] [[kernel]] decltype(last_of_segment<false>) last_of_segment<false>;
template [[host_name("repaired")]] [[kernel]] decltype(last_of_segment<true>) last_of_segment<true>;
