// Both simdgroups read the tile and one overwrites it, after a simdgroup_barrier that orders its own reads only. The
// last reader before the store may well be the simdgroup that stores; the race is with the other one.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void update(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[32];
  if (simdgroup == 0) tile[lane] = x[lane];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float value = tile[31 - lane];  // fault: other
  if (repaired) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (simdgroup == 1) tile[lane] = value;  // fault: race threadgroup, tile
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = value + tile[lane];
}

template [[host_name("fault")]] [[kernel]] decltype(update<false>) update<false>;
template [[host_name("repaired")]] [[kernel]] decltype(update<true>) update<true>;
