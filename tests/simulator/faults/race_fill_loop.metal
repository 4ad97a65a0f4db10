// One thread fills a table in a loop, which a compiler may turn into one operation, and all read it without a barrier.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void add_table(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float table[64];
  if (t == 0) {
    for (uint k = 0; k < 64; ++k) table[k] = 0;  // fault: other
  }
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 1) y[t - 32] = x[t] + table[t];  // fault: race threadgroup, table
}

template [[host_name("fault")]] [[kernel]] decltype(add_table<false>) add_table<false>;
template [[host_name("repaired")]] [[kernel]] decltype(add_table<true>) add_table<true>;
