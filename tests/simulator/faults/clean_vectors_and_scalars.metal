// Stored four at a time and read one at a time, and the other way round, with barriers; the tail by single elements.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float4* x, device float* y, constant uint& n, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float4 tile[32];
  threadgroup float* values = (threadgroup float*)tile;
  if (t < 32) tile[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float sum = values[t] + values[127 - t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  values[t] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t * 4 + 4 <= n) {
    ((device float4*)y)[t] = tile[t];
  } else {
    for (uint k = t * 4; k < n; ++k) y[k] = values[k];
  }
}
