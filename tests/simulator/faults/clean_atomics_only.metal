// Threads of all threadgroups communicate by atomic operations alone.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const uint* x, device atomic_uint* total, device atomic_uint* largest,
                  device atomic_uint* arrived, device uint* last, uint i [[thread_position_in_grid]],
                  uint n [[threads_per_grid]]) {
  atomic_fetch_add_explicit(total, x[i], memory_order_relaxed);
  atomic_fetch_max_explicit(largest, x[i], memory_order_relaxed);
  if (atomic_fetch_add_explicit(arrived, 1, memory_order_relaxed) == n - 1) {
    last[0] = atomic_load_explicit(arrived, memory_order_relaxed);
  }
}
