// A tile padded to nine columns is read four columns at a time: the padding that keeps the banks apart breaks the
// alignment.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float4 tile[24];
  threadgroup float* rows = (threadgroup float*)tile;
  const uint pitch = repaired ? 12 : 9;
  for (uint k = t; k < 64; k += 32) rows[k / 8 * pitch + k % 8] = x[k];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t >= 8) return;
  const float4 v = *(threadgroup float4*)(rows + t * pitch + 4);  // fault: misaligned, tile
  y[t] = v.x + v.y + v.z + v.w;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
