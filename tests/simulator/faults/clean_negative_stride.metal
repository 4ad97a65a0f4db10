// A stride of -1 as an unsigned number: product and sum wrap, and the index is right.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, constant int& stride, constant uint& start,
                  uint i [[thread_position_in_grid]]) {
  y[i] = x[start + i * stride];
}
