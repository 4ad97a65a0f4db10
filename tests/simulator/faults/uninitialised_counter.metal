// Threadgroup memory begins with what an earlier threadgroup left: an atomic counter must be reset as well.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void count_positive(device const float* x, device uint* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint count;
  if (repaired && t == 0) atomic_store_explicit(&count, 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (x[t] > 0) atomic_fetch_add_explicit(&count, 1, memory_order_relaxed);  // fault: uninitialised, count
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) y[0] = atomic_load_explicit(&count, memory_order_relaxed);
}

template [[host_name("fault")]] [[kernel]] decltype(count_positive<false>) count_positive<false>;
template [[host_name("repaired")]] [[kernel]] decltype(count_positive<true>) count_positive<true>;
