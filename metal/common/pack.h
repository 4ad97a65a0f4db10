// 16 bytes of device memory, the widest access of a thread, as floats in registers.
#pragma once

#include <metal_stdlib>

namespace mpsk {

using namespace metal;

// Elements in 16 bytes.
template <typename T>
constexpr uint pack_size() {
  return 16 / sizeof(T);
}

template <typename T>
struct pack {
  float values[pack_size<T>()];
};

// `from` is aligned to 16 bytes.
inline pack<float> load_pack(const device float* from) {
  const float4 four = *reinterpret_cast<const device float4*>(from);
  return {{four[0], four[1], four[2], four[3]}};
}

// half and bfloat, of which vectors have at most four elements. Taken apart by words: by halves, a compiler may find
// two loads of 8 bytes in it.
template <typename T>
inline pack<T> load_pack(const device T* from) {
  const uint4 bits = *reinterpret_cast<const device uint4*>(from);
  pack<T> p;
  for (uint i = 0; i < 4; ++i) {
    const vec<T, 2> two = as_type<vec<T, 2>>(bits[i]);
    p.values[2 * i] = float(two[0]);
    p.values[2 * i + 1] = float(two[1]);
  }
  return p;
}

inline void store_pack(device float* to, pack<float> p) {
  *reinterpret_cast<device float4*>(to) = float4(p.values[0], p.values[1], p.values[2], p.values[3]);
}

// Rounds.
template <typename T>
inline void store_pack(device T* to, pack<T> p) {
  const vec<T, 4> low = vec<T, 4>(float4(p.values[0], p.values[1], p.values[2], p.values[3]));
  const vec<T, 4> high = vec<T, 4>(float4(p.values[4], p.values[5], p.values[6], p.values[7]));
  *reinterpret_cast<device uint4*>(to) = uint4(as_type<uint2>(low), as_type<uint2>(high));
}

}  // namespace mpsk
