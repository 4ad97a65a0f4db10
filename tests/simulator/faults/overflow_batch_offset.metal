// The offset of a batch is made in 32 bits and added to the pointer; the stores of batch 16 land in batch 0.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void mark_first(device float* y, device const uint* batches, constant uint& stride, constant ulong& n,
                       uint i [[thread_position_in_grid]]) {
  const uint batch = batches[i];
  if (repaired && ulong(batch) * stride >= n) return;
  device float* start = y + batch * stride;  // fault: other
  start[i] = i + 1;                          // fault: overflow
}

template [[host_name("fault")]] [[kernel]] decltype(mark_first<false>) mark_first<false>;
template [[host_name("repaired")]] [[kernel]] decltype(mark_first<true>) mark_first<true>;
