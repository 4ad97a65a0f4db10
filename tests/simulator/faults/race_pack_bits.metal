// Eight lanes set bits of one byte by load, or and store: each takes its seven neighbours' bits from before.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void pack(device const float* x, device uchar* bits, uint i [[thread_position_in_grid]]) {
  if (!repaired) {
    bits[i / 8] |= uchar(x[i] > 0) << (i % 8);  // fault: race simdgroup, bits
  } else if (i % 8 == 0) {
    uchar byte = 0;
    for (uint k = 0; k < 8; ++k) byte |= uchar(x[i + k] > 0) << k;
    bits[i / 8] = byte;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(pack<false>) pack<false>;
template [[host_name("repaired")]] [[kernel]] decltype(pack<true>) pack<true>;
