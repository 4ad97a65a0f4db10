// A const_cast lets the kernel write to a buffer that was bound for reading: Metal tracks no hazard for it, so the next
// dispatch may run before the write is there.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void clamp_negative(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  const float value = max(x[i], 0.0f);
  if (repaired) {
    y[i] = value;
  } else {
    const_cast<device float*>(x)[i] = value;  // fault: read-only, x
    y[i] = value;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(clamp_negative<false>) clamp_negative<false>;
template [[host_name("repaired")]] [[kernel]] decltype(clamp_negative<true>) clamp_negative<true>;
