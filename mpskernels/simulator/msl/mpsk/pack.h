// <metal_pack>: normalised integers in a word. The first component lies in the lowest bits.
#pragma once

MPSK_BEGIN

namespace mpsk_pack {

inline float unorm(uint word, int shift, int bits) {
  uint largest = (1u << bits) - 1;
  return float(word >> shift & largest) / float(largest);
}
inline float snorm(uint word, int shift, int bits) {
  int value = int(word << (32 - bits - shift)) >> (32 - bits);
  return precise::fmax(float(value) / float((1 << (bits - 1)) - 1), -1.0f);
}
// NaN gives zero: the conversion to an integer says so.
inline uint to_unorm(float x, int shift, int bits) {
  uint largest = (1u << bits) - 1;
  return uint(precise::rint(isnan(x) ? 0.0f : precise::clamp(x, 0.0f, 1.0f) * float(largest))) << shift;
}
inline uint to_snorm(float x, int shift, int bits) {
  float largest = float((1 << (bits - 1)) - 1);
  int value = int(precise::rint(isnan(x) ? 0.0f : precise::clamp(x, -1.0f, 1.0f) * largest));
  return (uint(value) & ((1u << bits) - 1)) << shift;
}
inline float from_srgb(float c) { return c <= 0.04045f ? c / 12.92f : precise::pow((c + 0.055f) / 1.055f, 2.4f); }
inline float to_srgb(float c) {
  if (isnan(c)) return 0.0f;
  return c < 0.0031308f ? 12.92f * c : 1.055f * precise::pow(precise::fmin(c, 1.0f), 1.0f / 2.4f) - 0.055f;
}

}  // namespace mpsk_pack

#define MPSK_PACK(kind, name, T)                                                                                  \
  inline vec<T, 4> unpack_##kind##4x8_to_##name(uint x) {                                                         \
    return vec<T, 4>(T(mpsk_pack::kind(x, 0, 8)), T(mpsk_pack::kind(x, 8, 8)), T(mpsk_pack::kind(x, 16, 8)),      \
                     T(mpsk_pack::kind(x, 24, 8)));                                                               \
  }                                                                                                               \
  inline vec<T, 2> unpack_##kind##2x16_to_##name(uint x) {                                                        \
    return vec<T, 2>(T(mpsk_pack::kind(x, 0, 16)), T(mpsk_pack::kind(x, 16, 16)));                                \
  }                                                                                                               \
  inline uint pack_##name##_to_##kind##4x8(vec<T, 4> v) {                                                         \
    return mpsk_pack::to_##kind(v.x, 0, 8) | mpsk_pack::to_##kind(v.y, 8, 8) | mpsk_pack::to_##kind(v.z, 16, 8) | \
           mpsk_pack::to_##kind(v.w, 24, 8);                                                                      \
  }                                                                                                               \
  inline uint pack_##name##_to_##kind##2x16(vec<T, 2> v) {                                                        \
    return mpsk_pack::to_##kind(v.x, 0, 16) | mpsk_pack::to_##kind(v.y, 16, 16);                                  \
  }
#define MPSK_PACK_COLOUR(name, T)                                                                                     \
  inline vec<T, 4> unpack_unorm10a2_to_##name(uint x) {                                                               \
    return vec<T, 4>(T(mpsk_pack::unorm(x, 0, 10)), T(mpsk_pack::unorm(x, 10, 10)), T(mpsk_pack::unorm(x, 20, 10)),   \
                     T(mpsk_pack::unorm(x, 30, 2)));                                                                  \
  }                                                                                                                   \
  inline vec<T, 3> unpack_unorm565_to_##name(ushort x) {                                                              \
    return vec<T, 3>(T(mpsk_pack::unorm(x, 11, 5)), T(mpsk_pack::unorm(x, 5, 6)), T(mpsk_pack::unorm(x, 0, 5)));      \
  }                                                                                                                   \
  inline vec<T, 4> unpack_unorm4x8_srgb_to_##name(uint x) {                                                           \
    return vec<T, 4>(T(mpsk_pack::from_srgb(mpsk_pack::unorm(x, 0, 8))),                                              \
                     T(mpsk_pack::from_srgb(mpsk_pack::unorm(x, 8, 8))),                                              \
                     T(mpsk_pack::from_srgb(mpsk_pack::unorm(x, 16, 8))), T(mpsk_pack::unorm(x, 24, 8)));             \
  }                                                                                                                   \
  inline uint pack_##name##_to_unorm10a2(vec<T, 4> v) {                                                               \
    return mpsk_pack::to_unorm(v.x, 0, 10) | mpsk_pack::to_unorm(v.y, 10, 10) | mpsk_pack::to_unorm(v.z, 20, 10) |    \
           mpsk_pack::to_unorm(v.w, 30, 2);                                                                           \
  }                                                                                                                   \
  inline ushort pack_##name##_to_unorm565(vec<T, 3> v) {                                                              \
    return ushort(mpsk_pack::to_unorm(v.x, 11, 5) | mpsk_pack::to_unorm(v.y, 5, 6) | mpsk_pack::to_unorm(v.z, 0, 5)); \
  }                                                                                                                   \
  inline uint pack_##name##_to_srgb_unorm4x8(vec<T, 4> v) {                                                           \
    return mpsk_pack::to_unorm(mpsk_pack::to_srgb(v.x), 0, 8) | mpsk_pack::to_unorm(mpsk_pack::to_srgb(v.y), 8, 8) |  \
           mpsk_pack::to_unorm(mpsk_pack::to_srgb(v.z), 16, 8) | mpsk_pack::to_unorm(v.w, 24, 8);                     \
  }
MPSK_PACK(unorm, float, float)
MPSK_PACK(snorm, float, float)
MPSK_PACK_COLOUR(float, float)
#undef half
MPSK_PACK(unorm, half, _Float16)
MPSK_PACK(snorm, half, _Float16)
MPSK_PACK_COLOUR(half, _Float16)
#define half _Float16
#undef MPSK_PACK
#undef MPSK_PACK_COLOUR

MPSK_END
