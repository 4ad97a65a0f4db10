// The first threadgroup makes a table in threadgroup memory for all. Each threadgroup has its own.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void look_up(device const uint* x, device float* y, uint i [[thread_position_in_grid]],
                    uint t [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float table[32];
  if (repaired || group == 0) table[t] = t * t;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = table[x[i]];  // fault: uninitialised, table
}

template [[host_name("fault")]] [[kernel]] decltype(look_up<false>) look_up<false>;
template [[host_name("repaired")]] [[kernel]] decltype(look_up<true>) look_up<true>;
