// Four halves are read at an odd multiple of two bytes.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_windows(device const half* x, device half* y, uint i [[thread_position_in_grid]]) {
  half4 v;
  if (repaired) {
    v = half4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  } else {
    v = *(device const half4*)(x + i);  // fault: misaligned, x
  }
  y[i] = v.x + v.y + v.z + v.w;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_windows<false>) sum_windows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_windows<true>) sum_windows<true>;
