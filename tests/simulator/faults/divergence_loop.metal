// A barrier in a loop whose number of rounds depends on the thread.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void grow(device const uint* lengths, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  float value = t;
  const uint longest = 4;
  for (uint k = 0; k < (repaired ? longest : lengths[t]); ++k) {
    tile[t] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence threadgroup
    if (k < lengths[t]) value += tile[t ^ 32];
    threadgroup_barrier(mem_flags::mem_threadgroup);  // fault: other
  }
  y[t] = value;
}

template [[host_name("fault")]] [[kernel]] decltype(grow<false>) grow<false>;
template [[host_name("repaired")]] [[kernel]] decltype(grow<true>) grow<true>;
