// Arithmetic of narrow types: a shift beyond 16 bits of a ushort is one of an int.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const ushort* x, device uint* y, uint i [[thread_position_in_grid]]) {
  const ushort value = x[i];
  const uchar low = value;
  y[i] = (uint(value) << 16 | value >> 15) + (low << 20);
}
