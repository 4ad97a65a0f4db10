// `volatile` keeps the compiler from holding the tile in registers, as old CUDA code relies on, but orders no lane's
// store before another lane's load.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void rotate_lanes(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[32];
  volatile threadgroup float* shared = tile;
  shared[lane] = x[lane];  // fault: other
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = shared[(lane + 1) % 32];  // fault: race simdgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(rotate_lanes<false>) rotate_lanes<false>;
template [[host_name("repaired")]] [[kernel]] decltype(rotate_lanes<true>) rotate_lanes<true>;
