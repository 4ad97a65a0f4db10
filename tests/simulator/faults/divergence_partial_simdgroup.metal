// A threadgroup of 48 threads: the second simdgroup has 16 lanes, and each asks for the value of a lane there is not.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void fold(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  const ushort distance = repaired ? 8 : 16;
  y[t] = x[t] + simd_shuffle_xor(x[t], distance);  // fault: divergence simdgroup
}

template [[host_name("fault")]] [[kernel]] decltype(fold<false>) fold<false>;
template [[host_name("repaired")]] [[kernel]] decltype(fold<true>) fold<true>;
