// The shift for byte k of four is 24 - 8k, and five bytes come.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void place_byte(device const uint* x, device uint* y, uint i [[thread_position_in_grid]]) {
  const int shift = 24 - 8 * int(i);
  y[i] = repaired && shift < 0 ? 0 : x[i] << shift;  // fault: shift
}

template [[host_name("fault")]] [[kernel]] decltype(place_byte<false>) place_byte<false>;
template [[host_name("repaired")]] [[kernel]] decltype(place_byte<true>) place_byte<true>;
