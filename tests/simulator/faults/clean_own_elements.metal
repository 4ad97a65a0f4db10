// A thread stores, reads and stores again elements that are its own: no barrier is needed and no store is double.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                  uint t [[thread_index_in_threadgroup]]) {
  threadgroup float rows[64][4];
  for (uint k = 0; k < 4; ++k) rows[t][k] = x[i] * k;
  float sum = 0;
  for (uint k = 0; k < 4; ++k) sum += rows[t][k];
  y[i] = sum;
  y[i] = y[i] + 1;
}
