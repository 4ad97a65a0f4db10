// A terminator is stored behind the last value of a tile that has no room for it: it lands in the array that is
// declared next.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void blend(device const float* x, device const float* w, device float* y,
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float values[32];
  threadgroup float weights[32];
  values[t] = x[t];
  weights[t] = w[t];
  if (t == 31) values[repaired ? 31 : 32] = 0;  // fault: bounds, values
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = values[31 - t] * weights[31 - t];
}

template [[host_name("fault")]] [[kernel]] decltype(blend<false>) blend<false>;
template [[host_name("repaired")]] [[kernel]] decltype(blend<true>) blend<true>;
