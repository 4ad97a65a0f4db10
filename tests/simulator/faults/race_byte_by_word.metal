// Each thread sets its byte by rewriting the word around it, and so also the bytes of three other threads.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void narrow(device const uint* x, device uchar* y, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    y[i] = x[i];
  } else {
    device uint& word = ((device uint*)y)[i / 4];
    word = (word & ~(0xffu << i % 4 * 8)) | x[i] << i % 4 * 8;  // fault: race simdgroup, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(narrow<false>) narrow<false>;
template [[host_name("repaired")]] [[kernel]] decltype(narrow<true>) narrow<true>;
