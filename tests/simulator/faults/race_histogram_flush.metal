// The counts of a threadgroup are read without a barrier behind the atomic updates, so updates of the other simdgroup
// are missing from them.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void histogram(device const uint* x, device uint* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup uint bins[32];
  if (t < 32) bins[t] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit((threadgroup atomic_uint*)&bins[x[t]], 1, memory_order_relaxed);  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 32) y[t] = bins[t];  // fault: race threadgroup, bins
}

template [[host_name("fault")]] [[kernel]] decltype(histogram<false>) histogram<false>;
template [[host_name("repaired")]] [[kernel]] decltype(histogram<true>) histogram<true>;
