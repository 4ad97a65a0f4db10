// A copy of a whole struct from one past the last.
#include <metal_stdlib>
using namespace metal;

struct Point {
  float x, y, z;
};

template <bool repaired>
kernel void shift_points(device const Point* from, device Point* to, uint i [[thread_position_in_grid]],
                         uint n [[threads_per_grid]]) {
  to[i] = from[repaired ? (i + 1) % n : i + 1];  // fault: bounds, from
}

template [[host_name("fault")]] [[kernel]] decltype(shift_points<false>) shift_points<false>;
template [[host_name("repaired")]] [[kernel]] decltype(shift_points<true>) shift_points<true>;
