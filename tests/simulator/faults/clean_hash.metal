// Arithmetic that is meant to wrap, and an index made from it that is masked.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* table, device float* y, uint i [[thread_position_in_grid]]) {
  uint hash = (i + 1) * 2654435761u;
  hash ^= hash >> 15;
  hash *= 0x85ebca6bu;
  y[i] = table[hash & 63];
}
