// A shift and a division that the value in front of them guards. A compiler may work both out before it looks.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const uint* x, device uint* y, uint i [[thread_position_in_grid]]) {
  const uint mask = x[i] < 32 ? (1u << x[i]) - 1 : ~0u;
  const uint third = x[i] ? 96 / x[i] : 0;
  y[i] = mask ^ third;
}
