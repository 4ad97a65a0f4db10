// Loads and stores that both branches share, and loads that only one makes.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device const float* bias, device float* y, constant uint& biases,
                  uint i [[thread_position_in_grid]]) {
  float value = x[i];
  if (i < biases) {
    value += bias[i];
    y[i] = value * 2;
  } else {
    y[i] = value;
  }
}
