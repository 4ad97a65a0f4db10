// A running maximum in threadgroup memory that starts from nothing.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void column_maxima(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float largest[32];
  if (repaired) largest[t] = x[t];
  for (uint row = repaired ? 1 : 0; row < 4; ++row) {
    largest[t] = max(largest[t], x[row * 32 + t]);  // fault: uninitialised, largest
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[t] = largest[31 - t];
}

template [[host_name("fault")]] [[kernel]] decltype(column_maxima<false>) column_maxima<false>;
template [[host_name("repaired")]] [[kernel]] decltype(column_maxima<true>) column_maxima<true>;
