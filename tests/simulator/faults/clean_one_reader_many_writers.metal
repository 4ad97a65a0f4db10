// Atomic stores and exchanges of several threads to one place, read atomically.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device atomic_uint* flag, device uint* y, uint i [[thread_position_in_grid]]) {
  atomic_store_explicit(flag, 1, memory_order_relaxed);
  y[i] = atomic_exchange_explicit(flag, 1, memory_order_relaxed) + atomic_load_explicit(flag, memory_order_relaxed);
}
