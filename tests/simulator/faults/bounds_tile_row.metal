// The row of a tile is taken from the column's thread index: row 31 of eight.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void transpose(device const float* x, device float* y, uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[8][33];
  if (repaired) {
    tile[t.y][t.x] = x[t.y * 32 + t.x];
  } else {
    tile[t.x][t.y] = x[t.y * 32 + t.x];  // fault: bounds, tile
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t.x * 8 + t.y] = repaired ? tile[t.y][t.x] : tile[t.x % 8][t.y];
}

template [[host_name("fault")]] [[kernel]] decltype(transpose<false>) transpose<false>;
template [[host_name("repaired")]] [[kernel]] decltype(transpose<true>) transpose<true>;
