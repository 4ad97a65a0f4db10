// Threads past the end return at once; no barrier follows.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, constant uint& n, uint i [[thread_position_in_grid]]) {
  if (i >= n) return;
  y[i] = x[i] * 2;
}
