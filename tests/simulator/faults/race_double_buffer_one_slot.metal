// A loop with one barrier for each tile needs two slots. With one, a simdgroup that is ahead stores the next tile over
// the one that another simdgroup still reads.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_reversed(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[2][64];
  float sum = 0;
  for (uint k = 0; k < 4; ++k) {
    const uint slot = repaired ? k & 1 : 0;
    tile[slot][t] = x[k * 64 + t];  // fault: race threadgroup, tile
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += tile[slot][63 - t];  // fault: other
  }
  y[t] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_reversed<false>) sum_reversed<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_reversed<true>) sum_reversed<true>;
