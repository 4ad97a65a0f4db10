// A 64-bit mask of active lanes is shifted by a whole 64.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void lanes_from(device ulong* y, device const uint* first, uint i [[thread_position_in_grid]]) {
  if (repaired && first[i] >= 64) {
    y[i] = 0;
  } else {
    y[i] = ~ulong(0) << first[i];  // fault: shift
  }
}

template [[host_name("fault")]] [[kernel]] decltype(lanes_from<false>) lanes_from<false>;
template [[host_name("repaired")]] [[kernel]] decltype(lanes_from<true>) lanes_from<true>;
