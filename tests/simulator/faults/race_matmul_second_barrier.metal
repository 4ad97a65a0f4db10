// The loop of a tiled matrix product ends without its second barrier: the fast simdgroup stores the next tile of `w`
// while a slow one multiplies by this one.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void matmul(device const float* x, device const float* w, device float* y, uint2 p [[thread_position_in_grid]],
                   uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[4][32];
  float sum = 0;
  for (uint k = 0; k < 16; k += 4) {
    tile[t.y][t.x] = w[(k + t.y) * 32 + p.x];  // fault: race threadgroup, tile
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < 4; ++j) {
      sum += x[p.y * 16 + k + j] * tile[j][t.x];  // fault: other
    }
    if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[p.y * 32 + p.x] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(matmul<false>) matmul<false>;
template [[host_name("repaired")]] [[kernel]] decltype(matmul<true>) matmul<true>;
