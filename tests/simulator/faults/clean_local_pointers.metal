// A pointer that is null in some threads, and followed in the others only.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  device const float* left = i ? x + i - 1 : nullptr;
  y[i] = x[i] + (left ? *left : 0);
}
