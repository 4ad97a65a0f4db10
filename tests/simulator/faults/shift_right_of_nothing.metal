// The top `bits` bits of a word, for bits = 0.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void high_bits(device const uint* x, device const uint* bits, device uint* y,
                      uint i [[thread_position_in_grid]]) {
  if (repaired && bits[i] == 0) {
    y[i] = 0;
  } else {
    y[i] = x[i] >> (32 - bits[i]);  // fault: shift
  }
}

template [[host_name("fault")]] [[kernel]] decltype(high_bits<false>) high_bits<false>;
template [[host_name("repaired")]] [[kernel]] decltype(high_bits<true>) high_bits<true>;
