// Quantised weights, three bytes a group, are read a word at a time.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void unpack(device const uchar* x, device uint* y, uint i [[thread_position_in_grid]]) {
  device const uchar* group = x + i * 3;
  if (repaired) {
    y[i] = group[0] | uint(group[1]) << 8 | uint(group[2]) << 16;
  } else {
    y[i] = *(device const uint*)group & 0xffffff;  // fault: misaligned, x
  }
}

template [[host_name("fault")]] [[kernel]] decltype(unpack<false>) unpack<false>;
template [[host_name("repaired")]] [[kernel]] decltype(unpack<true>) unpack<true>;
