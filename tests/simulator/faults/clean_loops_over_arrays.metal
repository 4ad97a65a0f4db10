// Loops that a compiler turns into operations on whole arrays, each within its bounds and before a barrier.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float zeros[64];
  threadgroup float copy[64];
  if (t == 0) {
    for (uint k = 0; k < 64; ++k) zeros[k] = 0;
  }
  if (t == 32) {
    for (uint k = 0; k < 64; ++k) copy[k] = x[k];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = zeros[63 - t] + copy[63 - t];
}
