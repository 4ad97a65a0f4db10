// One thread copies a row into the tile in a loop, and all read it without a barrier.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void add_row(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float row[64];
  if (t == 0) {
    for (uint k = 0; k < 64; ++k) row[k] = x[k];  // fault: other
  }
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 1) y[t - 32] = x[t] + row[t];  // fault: race threadgroup, row
}

template [[host_name("fault")]] [[kernel]] decltype(add_row<false>) add_row<false>;
template [[host_name("repaired")]] [[kernel]] decltype(add_row<true>) add_row<true>;
