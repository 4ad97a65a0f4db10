// A shuffle by an index from data, which names lane 32 of 32.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void permute(device const float* x, device const uint* index, device float* y,
                    uint lane [[thread_index_in_simdgroup]]) {
  y[lane] = simd_shuffle(x[lane], ushort(repaired ? index[lane] % 32 : index[lane]));  // fault: divergence simdgroup
}

template [[host_name("fault")]] [[kernel]] decltype(permute<false>) permute<false>;
template [[host_name("repaired")]] [[kernel]] decltype(permute<true>) permute<true>;
