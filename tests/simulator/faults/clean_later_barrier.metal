// Device memory is stored, a barrier for threadgroup memory follows, and then one for device memory: that one is
// enough.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* scratch, device float* y, uint i [[thread_position_in_grid]]) {
  scratch[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_barrier(mem_flags::mem_none);
  threadgroup_barrier(mem_flags::mem_device);
  y[i] = scratch[i ^ 32];
}
