// A whole simdgroup returns, and the other goes on with simdgroup operations and simdgroup barriers.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  if (simdgroup == 1) return;
  threadgroup float tile[32];
  tile[lane] = simd_sum(x[lane]) + lane;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = tile[31 - lane];
}
