// A barrier inside a branch that only one simdgroup takes.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[t];
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 32) {
    if (!repaired) threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
    y[t] = tile[t];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
