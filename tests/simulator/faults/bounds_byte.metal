// 33 bytes are bound, and byte 33 is stored: within the last word, beyond the buffer.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void flags(device const float* x, device uchar* y, uint i [[thread_position_in_grid]]) {
  if (repaired && i == 33) return;
  y[i] = x[i] > 0;  // fault: bounds, y
}

template [[host_name("fault")]] [[kernel]] decltype(flags<false>) flags<false>;
template [[host_name("repaired")]] [[kernel]] decltype(flags<true>) flags<true>;
