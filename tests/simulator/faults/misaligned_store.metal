// Pairs are stored as float2 from an odd element on.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void interleave(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  if (i == 0) y[0] = 0;
  device float* pair = y + 1 + i * 2;
  if (repaired) {
    pair[0] = x[i];
    pair[1] = -x[i];
  } else {
    *(device float2*)pair = float2(x[i], -x[i]);  // fault: misaligned, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(interleave<false>) interleave<false>;
template [[host_name("repaired")]] [[kernel]] decltype(interleave<true>) interleave<true>;
