// Bins of a threadgroup are zeroed, counted atomically, and read plainly, with a barrier between each.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const uint* x, device uint* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint bins[16];
  if (t < 16) atomic_store_explicit(&bins[t], 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&bins[x[t]], 1, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 16) y[t] = ((threadgroup uint*)bins)[t];
}
