// A transposition through a tile with a padding column that nobody touches.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[8][9];
  tile[t.y][t.x] = x[t.y * 8 + t.x];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t.y * 8 + t.x] = tile[t.x][t.y];
}
