// One barrier in each branch. They look alike and are two: threads of one wait for threads that wait at the other.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void exchange(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[t];
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 32) {
    if (!repaired) threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
    y[t] = tile[t + 32];
  } else {
    if (!repaired) threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: other
    y[t] = -tile[t - 32];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(exchange<false>) exchange<false>;
template [[host_name("repaired")]] [[kernel]] decltype(exchange<true>) exchange<true>;
