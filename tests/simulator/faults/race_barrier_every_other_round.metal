// A barrier in every second round only: within a pair of rounds, the values of the second come from stores of the first
// that nothing has ordered.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void mix(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[4][64];
  float value = x[t];
  for (uint k = 0; k < 4; ++k) {
    tile[k][t] = value;  // fault: other
    if (repaired || k % 2 == 1) threadgroup_barrier(mem_flags::mem_threadgroup);
    value += tile[k][t ^ 32];  // fault: race threadgroup, tile
  }
  y[t] = value;
}

template [[host_name("fault")]] [[kernel]] decltype(mix<false>) mix<false>;
template [[host_name("repaired")]] [[kernel]] decltype(mix<true>) mix<true>;
