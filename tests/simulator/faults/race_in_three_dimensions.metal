// A threadgroup of 4x4x4 threads has two simdgroups, one above the other, and exchanges along the third axis with a
// simdgroup_barrier.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void flip(device const float* x, device float* y, uint3 t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[4][4][4];
  tile[t.z][t.y][t.x] = x[t.z * 16 + t.y * 4 + t.x];  // fault: other
  if (repaired) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[t.z * 16 + t.y * 4 + t.x] = tile[3 - t.z][t.y][t.x];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(flip<false>) flip<false>;
template [[host_name("repaired")]] [[kernel]] decltype(flip<true>) flip<true>;
