// Loads of fixed addresses in a branch: a compiler may make them without it, when nothing has been stored there yet.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, constant uint& use_tile,
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[4];
  if (use_tile && t < 4) tile[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float value = x[t];
  if (use_tile) value += tile[0];
  y[t] = use_tile ? value * tile[3] : value;
}
