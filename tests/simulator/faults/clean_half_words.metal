// Two threads store the two halves of one word: different memory locations, no race.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device half* y, uint i [[thread_position_in_grid]],
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup half tile[64];
  tile[t] = half(x[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[63 - t];
}
