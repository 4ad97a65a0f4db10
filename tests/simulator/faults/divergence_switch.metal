// A barrier in one case of a switch over data.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void apply(device const float* x, device const uint* what, device float* y,
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[t];
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  switch (what[t]) {
    case 0:
      y[t] = x[t];
      break;
    case 1:
      if (!repaired) threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
      y[t] = tile[0];
      break;
    default:
      y[t] = -x[t];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(apply<false>) apply<false>;
template [[host_name("repaired")]] [[kernel]] decltype(apply<true>) apply<true>;
