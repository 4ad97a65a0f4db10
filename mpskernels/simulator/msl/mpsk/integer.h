// <metal_integer>, and what <metal_common> and <metal_math> have for integers.
#pragma once

MPSK_BEGIN

// The specification's text, on one component. The wider type of the intermediate results holds every one of them.
namespace mpsk_integer {

template <typename T> using wide =
    conditional_t<sizeof(T) == 8, conditional_t<is_signed_v<T>, __int128, unsigned __int128>,
                  conditional_t<is_signed_v<T>, long, ulong>>;
template <typename T> constexpr int bits = sizeof(T) * 8;
template <typename T> constexpr T lowest = is_signed_v<T> ? T(make_unsigned_t<T>(1) << (bits<T> - 1)) : T(0);
template <typename T> constexpr T highest = T(~lowest<T>);
template <typename T> T saturated(wide<T> value) {
  return value > highest<T> ? highest<T> : value < lowest<T> ? lowest<T> : T(value);
}

}  // namespace mpsk_integer

#define MPSK_INTEGER_FUNCTIONS(T, U)                                                                                   \
  inline T abs(T x) { return T(x < T(0) ? U(U(0) - U(x)) : U(x)); }                                                    \
  inline U absdiff(T x, T y) { return x > y ? U(U(x) - U(y)) : U(U(y) - U(x)); }                                       \
  inline T addsat(T x, T y) { return mpsk_integer::saturated<T>(mpsk_integer::wide<T>(x) + y); }                       \
  inline T subsat(T x, T y) {                                                                                          \
    return T(0) <= mpsk_integer::lowest<T> && x < y ? T(0) : mpsk_integer::saturated<T>(mpsk_integer::wide<T>(x) - y); \
  }                                                                                                                    \
  inline T hadd(T x, T y) { return T((x & y) + ((x ^ y) >> 1)); }                                                      \
  inline T rhadd(T x, T y) { return T((x | y) - ((x ^ y) >> 1)); }                                                     \
  inline T max(T x, T y) { return x < y ? y : x; }                                                                     \
  inline T min(T x, T y) { return y < x ? y : x; }                                                                     \
  inline T max3(T x, T y, T z) { return max(x, max(y, z)); }                                                           \
  inline T min3(T x, T y, T z) { return min(x, min(y, z)); }                                                           \
  inline T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }                                        \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }                                                \
  inline T clz(T x) {                                                                                                  \
    return T(x ? __builtin_clzl(ulong(U(x))) - (64 - mpsk_integer::bits<T>) : mpsk_integer::bits<T>);                  \
  }                                                                                                                    \
  inline T ctz(T x) { return T(x ? __builtin_ctzl(ulong(U(x))) : mpsk_integer::bits<T>); }                             \
  inline T popcount(T x) { return T(__builtin_popcountl(ulong(U(x)))); }                                               \
  inline T reverse_bits(T x) { return T(__builtin_bitreverse64(ulong(U(x))) >> (64 - mpsk_integer::bits<T>)); }        \
  inline T rotate(T v, T i) {                                                                                          \
    constexpr uint mask = mpsk_integer::bits<T> - 1;                                                                   \
    uint n = uint(i) & mask;                                                                                           \
    return T(U(U(v) << n) | U(U(v) >> (-n & mask)));                                                                   \
  }                                                                                                                    \
  inline T mulhi(T x, T y) { return T(mpsk_integer::wide<T>(x) * mpsk_integer::wide<T>(y) >> mpsk_integer::bits<T>); } \
  inline T madhi(T a, T b, T c) { return T(U(mulhi(a, b)) + U(c)); }                                                   \
  inline T madsat(T a, T b, T c) { return mpsk_integer::madsat<T>(a, b, c); }                                          \
  inline T extract_bits(T x, uint offset, uint bits) {                                                                 \
    constexpr uint width = mpsk_integer::bits<T>;                                                                      \
    if (bits == 0 || offset >= width) return T(0);                                                                     \
    if (offset + bits > width) bits = width - offset;                                                                  \
    return T(T(U(x) << (width - offset - bits)) >> (width - bits));                                                    \
  }                                                                                                                    \
  inline T insert_bits(T base, T insert, uint offset, uint bits) {                                                     \
    constexpr uint width = mpsk_integer::bits<T>;                                                                      \
    if (bits == 0 || offset >= width) return base;                                                                     \
    U mask = U(U(bits >= width ? U(-1) : U((1ul << bits) - 1)) << offset);                                             \
    return T((U(base) & U(~mask)) | (U(U(insert) << offset) & mask));                                                  \
  }                                                                                                                    \
  MPSK_LIFT_INTEGER_FUNCTIONS(T, U)
// clang-format off
#define MPSK_LIFT_INTEGER_FUNCTIONS(T, U)                                                                         \
  MPSK_LIFT1(T, abs) MPSK_LIFT1(T, clz) MPSK_LIFT1(T, ctz) MPSK_LIFT1(T, popcount) MPSK_LIFT1(T, reverse_bits)    \
  MPSK_LIFT2_TO(U, T, absdiff) MPSK_LIFT2(T, addsat) MPSK_LIFT2(T, subsat) MPSK_LIFT2(T, hadd)                    \
  MPSK_LIFT2(T, rhadd) MPSK_LIFT2(T, max) MPSK_LIFT2(T, min) MPSK_LIFT2(T, rotate) MPSK_LIFT2(T, mulhi)           \
  MPSK_LIFT3(T, max3) MPSK_LIFT3(T, min3) MPSK_LIFT3(T, median3) MPSK_LIFT3(T, clamp) MPSK_LIFT3(T, madhi)        \
  MPSK_LIFT3(T, madsat) MPSK_LIFT_BITS(T, 2) MPSK_LIFT_BITS(T, 3) MPSK_LIFT_BITS(T, 4)
// clang-format on
#define MPSK_LIFT_BITS(T, n)                                                               \
  inline vec<T, n> extract_bits(vec<T, n> x, uint offset, uint bits) {                     \
    for (int i = 0; i < n; i++) x[i] = extract_bits(x[i], offset, bits);                   \
    return x;                                                                              \
  }                                                                                        \
  inline vec<T, n> insert_bits(vec<T, n> base, vec<T, n> insert, uint offset, uint bits) { \
    for (int i = 0; i < n; i++) base[i] = insert_bits(base[i], insert[i], offset, bits);   \
    return base;                                                                           \
  }

namespace mpsk_integer {

// a * b + c, which for 64 bits can pass even the wide type: there the sum saturates once the product has a sign.
template <typename T> T madsat(T a, T b, T c) {
  wide<T> product = wide<T>(a) * wide<T>(b), sum;
  if (__builtin_add_overflow(product, wide<T>(c), &sum)) return product > 0 ? highest<T> : lowest<T>;
  return saturated<T>(sum);
}

}  // namespace mpsk_integer

MPSK_INTEGER_FUNCTIONS(char, uchar)
MPSK_INTEGER_FUNCTIONS(uchar, uchar)
MPSK_INTEGER_FUNCTIONS(short, ushort)
MPSK_INTEGER_FUNCTIONS(ushort, ushort)
MPSK_INTEGER_FUNCTIONS(int, uint)
MPSK_INTEGER_FUNCTIONS(uint, uint)
MPSK_INTEGER_FUNCTIONS(long, ulong)
MPSK_INTEGER_FUNCTIONS(ulong, ulong)
#undef MPSK_INTEGER_FUNCTIONS
#undef MPSK_LIFT_INTEGER_FUNCTIONS
#undef MPSK_LIFT_BITS

inline int mul24(int x, int y) { return int(uint(int(uint(x) << 8) >> 8) * uint(int(uint(y) << 8) >> 8)); }
inline uint mul24(uint x, uint y) { return (x & 0xffffffu) * (y & 0xffffffu); }
inline int mad24(int x, int y, int z) { return int(uint(mul24(x, y)) + uint(z)); }
inline uint mad24(uint x, uint y, uint z) { return mul24(x, y) + z; }
MPSK_LIFT2(int, mul24)
MPSK_LIFT2(uint, mul24)
MPSK_LIFT3(int, mad24)
MPSK_LIFT3(uint, mad24)

MPSK_END
