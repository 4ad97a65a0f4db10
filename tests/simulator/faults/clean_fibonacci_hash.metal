// The upper bits, and the remainder, of a product that is meant to wrap are an index.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* table, device float* y, uint i [[thread_position_in_grid]]) {
  y[i] = table[(i * 2654435769u) >> 26] + table[(i * 2246822519u) % 61];
}
