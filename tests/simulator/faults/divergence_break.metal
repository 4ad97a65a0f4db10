// A search leaves the loop where it has found something, and leaves the others at the barrier.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void find(device const float* x, device uint* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  uint found = 0;
  for (uint k = 0; k < 4; ++k) {
    tile[t] = x[k * 64 + t];
    threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: other
    if (tile[t ^ 32] == t) found = k + 1;
    if (!repaired && found) break;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
  }
  y[t] = found;
}

template [[host_name("fault")]] [[kernel]] decltype(find<false>) find<false>;
template [[host_name("repaired")]] [[kernel]] decltype(find<true>) find<true>;
