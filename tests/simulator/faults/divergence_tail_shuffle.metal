// The guard against the row's end is taken first: the last lane inside asks its neighbour outside.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void difference(device const float* x, device float* y, constant uint& n,
                       uint lane [[thread_index_in_simdgroup]]) {
  if (!repaired && lane >= n) return;
  const float value = lane < n ? x[lane] : x[n - 1];
  const float next = simd_shuffle(value, min(lane + 1, 31u));  // fault: divergence simdgroup
  if (lane < n) y[lane] = next - value;
}

template [[host_name("fault")]] [[kernel]] decltype(difference<false>) difference<false>;
template [[host_name("repaired")]] [[kernel]] decltype(difference<true>) difference<true>;
