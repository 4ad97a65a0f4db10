// A mask of `bits` ones, for bits up to 32: a shift by 32 is a shift by 0 on one chip and gives 0 on another.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void low_bits(device const uint* x, device const uint* bits, device uint* y,
                     uint i [[thread_position_in_grid]]) {
  if (repaired && bits[i] == 32) {
    y[i] = x[i];
  } else {
    y[i] = x[i] & ((1u << bits[i]) - 1);  // fault: shift
  }
}

template [[host_name("fault")]] [[kernel]] decltype(low_bits<false>) low_bits<false>;
template [[host_name("repaired")]] [[kernel]] decltype(low_bits<true>) low_bits<true>;
