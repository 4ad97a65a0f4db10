// A vector in threadgroup memory is stored component by component; the one that has no value is not used.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float4 tile[64];
  tile[t].x = x[t];
  tile[t].yz = float2(1, 2);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = tile[t ^ 32].x + tile[t ^ 32].y + tile[t ^ 32].z;
}
