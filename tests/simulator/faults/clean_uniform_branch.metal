// Barriers in a branch and in a loop that all threads of a threadgroup take alike.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, device const uint* rounds, uint i [[thread_position_in_grid]],
                  uint t [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float tile[64];
  float value = x[i];
  for (uint k = 0; k < rounds[group]; ++k) {
    tile[t] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = tile[63 - t] + 1;
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (group == 1) {
    tile[t] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = tile[t ^ 32];
  }
  y[i] = value;
}
