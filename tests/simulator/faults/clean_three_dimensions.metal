// A grid of three dimensions whose threadgroups are cut off at every edge.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint3 p [[thread_position_in_grid]],
                  uint3 grid [[threads_per_grid]], uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  const uint at = (p.z * grid.y + p.y) * grid.x + p.x;
  tile[t] = x[at];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[at] = tile[0] - tile[t];
}
