// A helper with a barrier is called from both branches: one line of source, two barriers.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
float exchange(threadgroup float* tile, float value, uint t) {
  tile[t] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
  return tile[t ^ 32];
}

template <bool repaired>
kernel void choose(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  if (repaired) {
    y[t] = exchange<repaired>(tile, t < 32 ? x[t] : -x[t], t);
  } else if (t < 32) {
    y[t] = exchange<repaired>(tile, x[t], t);  // fault: other
  } else {
    y[t] = exchange<repaired>(tile, -x[t], t);  // fault: other
  }
}

template [[host_name("fault")]] [[kernel]] decltype(choose<false>) choose<false>;
template [[host_name("repaired")]] [[kernel]] decltype(choose<true>) choose<true>;
