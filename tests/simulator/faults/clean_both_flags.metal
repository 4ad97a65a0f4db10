// One barrier for threadgroup and device memory.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* scratch, device float* y, uint i [[thread_position_in_grid]],
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[i];
  scratch[i] = -x[i];
  threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
  y[i] = 2 * tile[t ^ 32] + scratch[i ^ 32];
}
