// A grid that is no multiple of its threadgroups: those at the edges are smaller, and their barriers wait for fewer.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint2 p [[thread_position_in_grid]],
                  uint2 grid [[threads_per_grid]], uint t [[thread_index_in_threadgroup]],
                  uint2 group [[threads_per_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[p.y * grid.x + p.x];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[p.y * grid.x + p.x] = tile[group.x * group.y - 1 - t];
}
