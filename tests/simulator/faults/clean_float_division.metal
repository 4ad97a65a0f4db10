// Division by zero of floats has a value.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint i [[thread_position_in_grid]]) { y[i] = 1 / x[i]; }
