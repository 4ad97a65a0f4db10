// Fewer query heads than key heads make the ratio of the two 0, by which the head is then divided.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void key_head(device uint* y, constant uint& heads, constant uint& key_heads,
                     uint head [[thread_position_in_grid]]) {
  const uint ratio = heads / key_heads;
  y[head] = head / (repaired ? max(ratio, 1u) : ratio);  // fault: division
}

template [[host_name("fault")]] [[kernel]] decltype(key_head<false>) key_head<false>;
template [[host_name("repaired")]] [[kernel]] decltype(key_head<true>) key_head<true>;
