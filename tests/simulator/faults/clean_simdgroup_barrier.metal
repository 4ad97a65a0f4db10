// Lanes of a simdgroup exchange values with simdgroup barriers alone, in threadgroup and in device memory; other
// simdgroups use other elements.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* scratch, device float* y, uint i [[thread_position_in_grid]],
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  float value = x[i];
  for (uint k = 1; k < 32; k *= 2) {
    tile[t] = value;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    value += tile[t ^ k];
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  scratch[i] = value;
  simdgroup_barrier(mem_flags::mem_device);
  y[i] = scratch[i ^ 31] - x[i];
}
