// More simdgroup barriers in one threadgroup than 16 bits count.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[4];
  float value = x[lane];
  for (uint k = 0; k < 33000; ++k) {
    tile[lane] = value;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    value = tile[lane ^ 1];
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[lane] = value;
}
