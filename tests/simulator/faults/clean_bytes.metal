// Neighbours store neighbouring bytes, in threadgroup and in device memory, also across threadgroups.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const uint* x, device uchar* y, device bool* odd, uint i [[thread_position_in_grid]],
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup uchar tile[33];
  tile[t] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[t ^ 3];
  odd[i] = x[i] & 1;
}
