// An in-place rotation within a threadgroup: an element is overwritten before its neighbour has read it.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void rotate_halves(device float* x, uint i [[thread_position_in_grid]]) {
  const float value = x[i ^ 32];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_device);
  x[i] = value;  // fault: race threadgroup, x
}

template [[host_name("fault")]] [[kernel]] decltype(rotate_halves<false>) rotate_halves<false>;
template [[host_name("repaired")]] [[kernel]] decltype(rotate_halves<true>) rotate_halves<true>;
