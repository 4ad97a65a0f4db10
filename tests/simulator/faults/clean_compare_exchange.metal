// A maximum of floats by compare and exchange.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device atomic_float* largest, uint i [[thread_position_in_grid]]) {
  float seen = atomic_load_explicit(largest, memory_order_relaxed);
  while (seen < x[i] &&
         !atomic_compare_exchange_weak_explicit(largest, &seen, x[i], memory_order_relaxed, memory_order_relaxed)) {
  }
}
