// A table in constant memory of the program, and one in the thread's own memory.
#include <metal_stdlib>
using namespace metal;

constant float table[4] = {1, 2, 4, 8};

kernel void clean(device const uint* x, device float* y, uint i [[thread_position_in_grid]]) {
  float own[4];
  for (uint k = 0; k < 4; ++k) own[k] = table[k] + k;
  y[i] = table[x[i]] + own[3 - x[i]];
}
