// The fourth word of a float3 is padding: nobody gives it a value and nobody uses it.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float3 tile[64];
  tile[t] = float3(x[t], 1, 2);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float3 other = tile[t ^ 32];
  y[t] = other.x + other.y + other.z;
}
