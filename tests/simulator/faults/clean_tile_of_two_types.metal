// Threadgroup memory is used for floats, and behind a barrier for halves.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float memory[64];
  memory[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float other = memory[63 - t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup half* halves = (threadgroup half*)memory;
  halves[t] = half(other);
  halves[64 + t] = half(-other);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = halves[t ^ 32] * 2 + halves[64 + (t ^ 32)];
}
