// One buffer bound as input and as output: each thread reads and writes its own element.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint i [[thread_position_in_grid]]) { y[i] = x[i] * 2 + 1; }
