// A counter is reset by a plain store and counted atomically at once: counts from before the store are lost.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void count_positive(device const float* x, device uint* y, uint i [[thread_position_in_grid]],
                           uint t [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup uint count;
  threadgroup atomic_uint* counter = (threadgroup atomic_uint*)&count;
  if (t == 0) count = 0;  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t >= 32 && x[i] > 0) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);  // fault: race threadgroup, count
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) y[group] = count;
}

template [[host_name("fault")]] [[kernel]] decltype(count_positive<false>) count_positive<false>;
template [[host_name("repaired")]] [[kernel]] decltype(count_positive<true>) count_positive<true>;
