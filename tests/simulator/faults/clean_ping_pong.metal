// Two slots and one barrier a round: the store of a round is two barriers behind the reads that it overwrites.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[2][64];
  float sum = 0;
  for (uint k = 0; k < 6; ++k) {
    tile[k & 1][t] = x[k * 64 + t];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += tile[k & 1][63 - t];
  }
  y[t] = sum;
}
