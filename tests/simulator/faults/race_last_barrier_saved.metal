// The loop leaves out the barrier of its last round, as nothing is stored behind it in the loop. But what follows reads
// the last tile.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void blur(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[2][64];
  float value = x[t];
  for (uint k = 0; k < 3; ++k) {
    tile[k & 1][t] = value;  // fault: other
    if (repaired || k + 1 < 3) threadgroup_barrier(mem_flags::mem_threadgroup);
    if (k + 1 < 3) value += tile[k & 1][(t + 32) % 64];
  }
  y[t] = tile[0][(t + 32) % 64];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(blur<false>) blur<false>;
template [[host_name("repaired")]] [[kernel]] decltype(blur<true>) blur<true>;
