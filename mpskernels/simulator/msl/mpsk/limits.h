// <metal_limits>
#pragma once

MPSK_BEGIN

enum float_denorm_style { denorm_indeterminate = -1, denorm_absent = 0, denorm_present = 1 };
enum float_round_style {
  round_indeterminate = -1,
  round_toward_zero = 0,
  round_to_nearest = 1,
  round_toward_infinity = 2,
  round_toward_neg_infinity = 3,
};

// Members that are the same for every type.
template <typename T, bool integer> struct mpsk_limits {
  static constexpr bool is_specialized = true;
  static constexpr bool is_signed = is_signed_v<T>;
  static constexpr bool is_integer = integer;
  static constexpr bool is_exact = integer;
  static constexpr bool has_infinity = !integer;
  static constexpr bool has_quiet_NaN = !integer;
  static constexpr bool has_signaling_NaN = false;
  static constexpr float_denorm_style has_denorm = integer ? denorm_absent : denorm_indeterminate;
  static constexpr bool has_denorm_loss = false;
  static constexpr bool is_iec559 = !integer;
  static constexpr bool is_bounded = true;
  static constexpr bool is_modulo = integer && !is_signed_v<T>;
  static constexpr bool traps = false;
  static constexpr bool tinyness_before = false;
  static constexpr float_round_style round_style = integer ? round_toward_zero : round_to_nearest;
  static constexpr int radix = 2;
};

template <typename T> struct numeric_limits {
  static constexpr bool is_specialized = false;
};
template <typename T> struct numeric_limits<const T> : numeric_limits<T> {};
template <typename T> struct numeric_limits<volatile T> : numeric_limits<T> {};

#define MPSK_LIMITS(T, bits)                                                                         \
  template <> struct numeric_limits<T> : mpsk_limits<T, true> {                                      \
    static constexpr int digits = bits;                                                              \
    static constexpr int digits10 = bits * 30103 / 100000;                                           \
    static constexpr int max_digits10 = 0;                                                           \
    static constexpr int min_exponent = 0, min_exponent10 = 0, max_exponent = 0, max_exponent10 = 0; \
    static constexpr T max() { return T(~0ul >> (64 - bits)); }                                      \
    static constexpr T min() { return is_signed_v<T> ? T(-max() - 1) : T(0); }                       \
    static constexpr T lowest() { return min(); }                                                    \
    static constexpr T epsilon() { return T(0); }                                                    \
    static constexpr T round_error() { return T(0); }                                                \
    static constexpr T infinity() { return T(0); }                                                   \
    static constexpr T quiet_NaN() { return T(0); }                                                  \
    static constexpr T signaling_NaN() { return T(0); }                                              \
    static constexpr T denorm_min() { return T(0); }                                                 \
  };
MPSK_LIMITS(bool, 1)
MPSK_LIMITS(char, 7)
MPSK_LIMITS(uchar, 8)
MPSK_LIMITS(short, 15)
MPSK_LIMITS(ushort, 16)
MPSK_LIMITS(int, 31)
MPSK_LIMITS(uint, 32)
MPSK_LIMITS(long, 63)
MPSK_LIMITS(ulong, 64)
#undef MPSK_LIMITS

#define MPSK_LIMITS(T, mantissa, decimal, round_trip, low, low10, high, high10, smallest, largest, denormal) \
  template <> struct numeric_limits<T> : mpsk_limits<T, false> {                                             \
    static constexpr int digits = mantissa, digits10 = decimal, max_digits10 = round_trip;                   \
    static constexpr int min_exponent = low, min_exponent10 = low10;                                         \
    static constexpr int max_exponent = high, max_exponent10 = high10;                                       \
    static constexpr T max() { return T(largest); }                                                          \
    static constexpr T min() { return T(smallest); }                                                         \
    static constexpr T lowest() { return T(-largest); }                                                      \
    static constexpr T epsilon() { return T(1.0f / float(1 << (mantissa - 1))); }                            \
    static constexpr T round_error() { return T(0.5f); }                                                     \
    static constexpr T infinity() { return T(__builtin_inff()); }                                            \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }                                         \
    static constexpr T signaling_NaN() { return T(__builtin_nanf("")); }                                     \
    static constexpr T denorm_min() { return T(denormal); }                                                  \
  };
MPSK_LIMITS(float, 24, 6, 9, -125, -37, 128, 38, 0x1p-126f, 0x1.fffffep127f, 0x1p-149f)
MPSK_LIMITS(half, 11, 3, 5, -13, -4, 16, 4, 0x1p-14f, 65504.0f, 0x1p-24f)
MPSK_LIMITS(bfloat, 8, 2, 4, -125, -37, 128, 38, 0x1p-126f, 0x1.fep127f, 0x1p-133f)
#undef MPSK_LIMITS

MPSK_END
