// The scalar types of the Metal shading language and the keywords clang lacks, for clang's C++ for OpenCL mode.
#pragma once

// Address spaces. `constant` memory is a second flavour of OpenCL's global memory, so that both are distinct types,
// both convert to generic references, and methods and copies work on objects in either.
#define device __attribute__((opencl_global_device))
#define constant __attribute__((opencl_global_host)) const
#define threadgroup __local
#define thread __private
#define kernel

// Words OpenCL reserves and Metal does not.
#define global mpsk_word_global
#define local mpsk_word_local
#define generic mpsk_word_generic
#define pipe mpsk_word_pipe
#define read_only mpsk_word_read_only
#define write_only mpsk_word_write_only
#define read_write mpsk_word_read_write

#define half _Float16

// Clang's conditional operator cannot join an object in memory with a temporary of the same class, because only the
// first has an address space. The compiler writes `c ? mpsk_value->*a : mpsk_value->*b` for `c ? a : b`, which makes
// temporaries.
struct mpsk_value_t {
  template <typename T> friend __attribute__((always_inline)) constexpr T operator->*(mpsk_value_t, T value) {
    return value;
  }
  // Text lies in `constant`.
  friend __attribute__((always_inline)) constant char* operator->*(mpsk_value_t, const __constant char* text) {
    return (constant char*)(unsigned long)text;
  }
};
#define mpsk_value mpsk_value_t()

// Everything in these headers is small and must vanish into its caller.
#define MPSK_BEGIN \
  _Pragma("clang attribute push(__attribute__((always_inline)), apply_to = function)") namespace metal {
#define MPSK_END \
  }              \
  _Pragma("clang attribute pop")

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef long intptr_t;
typedef ulong uintptr_t;

// What the language needs for braces; clang knows it by its name and members. (__decay gives a pointer without an
// address space, which clang insists on.)
namespace std {
template <typename T> class initializer_list {
  __decay(const T[1]) values;
  size_t count;

 public:
  constexpr size_t size() const { return count; }
  constexpr __decay(const T[1]) begin() const { return values; }
};
}  // namespace std

#include "type_traits.h"

MPSK_BEGIN

struct bfloat;
namespace mpsk_type {
template <> struct is_bfloat<bfloat> : true_type {};
}  // namespace mpsk_type

// The upper half of a float. Converts to float by itself; from float, and from and to half, only when asked.
// Arithmetic between bfloats, or with an integer, rounds to bfloat each time; with a float it is float arithmetic.
struct bfloat {
  ushort bits;

  bfloat() = default;
  template <typename T, enable_if_t<is_integral_v<T>, int> = 0>
  constexpr bfloat(T value) : bits(round(float(value))) {}
  template <typename T, enable_if_t<!is_integral_v<T> && __is_convertible(T, float), int> = 0>
  explicit constexpr bfloat(T value) : bits(round(float(value))) {}

  // To other integers than bool only when asked, which Metal does not demand: `c ? x : 0` and `y *= x` would be
  // ambiguous.
  template <typename T, enable_if_t<is_same_v<T, float> || is_same_v<T, bool>, int> = 0> constexpr operator T() const {
    return T(__builtin_bit_cast(float, uint(bits) << 16));
  }
  template <typename T, enable_if_t<is_same_v<T, half> || (is_integral_v<T> && !is_same_v<T, bool>), int> = 0>
  explicit constexpr operator T() const {
    return T(float(*this));
  }

  // From an object that converts to a number.
  template <typename T, enable_if_t<__is_class(T) && __is_convertible(T, float) && !is_same_v<T, bfloat>, int> = 0>
  constexpr bfloat& operator=(T value) {
    return *this = bfloat(value);
  }

  // Nearest, ties to even. NaNs stay NaNs; told apart by their bits, because fast math assumes there are none.
  static constexpr ushort round(float value) {
    uint u = __builtin_bit_cast(uint, value);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return ushort((nan ? u | 0x400000u : u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }

#define MPSK_COMPOUND(op)                                                               \
  template <typename T, enable_if_t<is_same_v<T, bfloat> || is_integral_v<T>, int> = 0> \
  constexpr bfloat& operator op##=(T value) {                                           \
    return *this = bfloat(float(*this) op float(bfloat(value)));                        \
  }
  MPSK_COMPOUND(+);
  MPSK_COMPOUND(-);
  MPSK_COMPOUND(*);
  MPSK_COMPOUND(/);
#undef MPSK_COMPOUND
  constexpr bfloat& operator++() { return *this += 1; }
  constexpr bfloat& operator--() { return *this -= 1; }
  constexpr bfloat operator++(int) {
    bfloat old = *this;
    *this += 1;
    return old;
  }
  constexpr bfloat operator--(int) {
    bfloat old = *this;
    *this -= 1;
    return old;
  }
};

constexpr bfloat operator-(bfloat a) {
  bfloat r = a;
  r.bits ^= 0x8000u;
  return r;
}
constexpr bfloat operator+(bfloat a) { return a; }
constexpr bool operator!(bfloat a) { return !float(a); }

namespace mpsk_type {

// What arithmetic of a bfloat and a T gives: nothing for half, which may not be mixed with bfloat.
template <typename T, bool integral = is_integral_v<T>> struct with_bfloat {};
template <typename T> struct with_bfloat<T, true> : identity<bfloat> {};
template <> struct with_bfloat<bfloat, false> : identity<bfloat> {};
template <> struct with_bfloat<float, false> : identity<float> {};

}  // namespace mpsk_type

#define MPSK_BINARY(op, result)                                                                             \
  constexpr result(bfloat) operator op(bfloat a, bfloat b) { return result(bfloat)(float(a) op float(b)); } \
  template <typename T, typename R = typename mpsk_type::with_bfloat<T>::type,                              \
            enable_if_t<!is_same_v<T, bfloat>, int> = 0>                                                    \
  constexpr result(R) operator op(bfloat a, T b) {                                                          \
    return result(R)(float(a) op float(R(b)));                                                              \
  }                                                                                                         \
  template <typename T, typename R = typename mpsk_type::with_bfloat<T>::type,                              \
            enable_if_t<!is_same_v<T, bfloat>, int> = 0>                                                    \
  constexpr result(R) operator op(T a, bfloat b) {                                                          \
    return result(R)(float(R(a)) op float(b));                                                              \
  }                                                                                                         \
  void operator op(bfloat, half) = delete;                                                                  \
  void operator op(half, bfloat) = delete;
#define MPSK_SAME(R) R
#define MPSK_BOOL(R) bool
MPSK_BINARY(+, MPSK_SAME)
MPSK_BINARY(-, MPSK_SAME)
MPSK_BINARY(*, MPSK_SAME)
MPSK_BINARY(/, MPSK_SAME)
MPSK_BINARY(==, MPSK_BOOL)
MPSK_BINARY(!=, MPSK_BOOL)
MPSK_BINARY(<, MPSK_BOOL)
MPSK_BINARY(<=, MPSK_BOOL)
MPSK_BINARY(>, MPSK_BOOL)
MPSK_BINARY(>=, MPSK_BOOL)
#undef MPSK_BINARY
#undef MPSK_SAME
#undef MPSK_BOOL

MPSK_END

using metal::bfloat;

#include "vector.h"
