// Bins are counted by load, add and store: two threads with one bin load the same count, and one of them is lost.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void histogram(device const uint* x, device uint* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup uint bins[32];
  if (t < 32) bins[t] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (repaired) {
    atomic_fetch_add_explicit((threadgroup atomic_uint*)&bins[x[t]], 1, memory_order_relaxed);
  } else {
    bins[x[t]] += 1;  // fault: race threadgroup, bins
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 32) y[t] = bins[t];
}

template [[host_name("fault")]] [[kernel]] decltype(histogram<false>) histogram<false>;
template [[host_name("repaired")]] [[kernel]] decltype(histogram<true>) histogram<true>;
