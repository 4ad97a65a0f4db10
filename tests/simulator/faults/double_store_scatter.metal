// A scatter whose indices are not unique: which of two values stays depends on the order of threadgroups.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scatter(device const float* x, device const uint* index, device float* y,
                    uint i [[thread_position_in_grid]]) {
  bool last = true;
  for (uint k = i + 1; k < 8; ++k) last &= index[k] != index[i];
  if (!repaired || last) y[index[i]] = x[i];  // fault: double store grid, y
}

template [[host_name("fault")]] [[kernel]] decltype(scatter<false>) scatter<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scatter<true>) scatter<true>;
