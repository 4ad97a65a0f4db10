// An element is stored by one thread, then by another, then read by a third, with a barrier between each.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* scratch, device float* y,
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float value = tile[63 - t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  tile[t ^ 32] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  scratch[t ^ 1] = tile[t];
  threadgroup_barrier(mem_flags::mem_device);
  y[t] = scratch[t];
}
