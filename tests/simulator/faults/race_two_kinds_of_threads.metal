// Only the first lane stores the shared scale, and every lane reads it at once. A reader in lane 0's own simdgroup is
// as wrong as one in another.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void normalise(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float scale;
  if (lane == 0) scale = x[0] + 1;  // fault: other
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = x[lane] * scale;  // fault: race simdgroup, scale
}

template [[host_name("fault")]] [[kernel]] decltype(normalise<false>) normalise<false>;
template [[host_name("repaired")]] [[kernel]] decltype(normalise<true>) normalise<true>;
