// Threads past the end return before a barrier that the others wait at.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, constant uint& n, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  if (!repaired && t >= n) return;
  tile[t] = t < n ? x[t] : 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
  if (t < n) y[t] = tile[n - 1 - t];
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
