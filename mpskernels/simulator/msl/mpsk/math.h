// <metal_math> and <metal_common>: floating-point functions, of float in a precise and a fast variant, and of half. A
// half function computes in float and rounds once.
#pragma once

// Fast math speaks of the operators of a program: functions honour infinities and NaNs on Apple's GPUs all the same.
#pragma float_control(precise, on, push)

MPSK_BEGIN

namespace mpsk_type {

template <typename T> constexpr bool is_bfloat_or_wider =
    is_same_v<T, bfloat> || is_same_v<T, float> || is_integral_v<T>;
template <typename... T> constexpr bool takes_bfloat = (is_same_v<T, bfloat> || ...) && (is_bfloat_or_wider<T> && ...);

}  // namespace mpsk_type

// A bfloat takes the function of float, and gets its result. (Its conversions alone would leave a choice.)
#define MPSK_BFLOAT1(name)                                                \
  template <typename A, enable_if_t<mpsk_type::takes_bfloat<A>, int> = 0> \
  inline float name(A a) {                                                \
    return name(float(a));                                                \
  }
#define MPSK_BFLOAT2(name)                                                               \
  template <typename A, typename B, enable_if_t<mpsk_type::takes_bfloat<A, B>, int> = 0> \
  inline float name(A a, B b) {                                                          \
    return name(float(a), float(b));                                                     \
  }
#define MPSK_BFLOAT3(name)                                                                              \
  template <typename A, typename B, typename C, enable_if_t<mpsk_type::takes_bfloat<A, B, C>, int> = 0> \
  inline float name(A a, B b, C c) {                                                                    \
    return name(float(a), float(b), float(c));                                                          \
  }

namespace precise {

inline float acos(float x) { return __builtin_acosf(x); }
inline float acosh(float x) { return __builtin_acoshf(x); }
inline float asin(float x) { return __builtin_asinf(x); }
inline float asinh(float x) { return __builtin_asinhf(x); }
inline float atan(float x) { return __builtin_atanf(x); }
inline float atanh(float x) { return __builtin_atanhf(x); }
inline float ceil(float x) { return __builtin_elementwise_ceil(x); }
inline float cos(float x) { return __builtin_elementwise_cos(x); }
inline float cosh(float x) { return __builtin_coshf(x); }
inline float exp(float x) { return __builtin_elementwise_exp(x); }
inline float exp2(float x) { return __builtin_elementwise_exp2(x); }
inline float exp10(float x) { return __builtin_exp10f(x); }
inline float fabs(float x) { return __builtin_elementwise_abs(x); }
inline float abs(float x) { return __builtin_elementwise_abs(x); }
inline float floor(float x) { return __builtin_elementwise_floor(x); }
inline float log(float x) { return __builtin_elementwise_log(x); }
inline float log2(float x) { return __builtin_elementwise_log2(x); }
inline float log10(float x) { return __builtin_elementwise_log10(x); }
inline float rint(float x) { return __builtin_elementwise_rint(x); }
inline float round(float x) { return __builtin_elementwise_round(x); }
inline float sqrt(float x) { return __builtin_elementwise_sqrt(x); }
inline float rsqrt(float x) { return 1.0f / __builtin_elementwise_sqrt(x); }
inline float sin(float x) { return __builtin_elementwise_sin(x); }
inline float sinh(float x) { return __builtin_sinhf(x); }
inline float tan(float x) { return __builtin_tanf(x); }
inline float tanh(float x) { return __builtin_tanhf(x); }
inline float trunc(float x) { return __builtin_elementwise_trunc(x); }

inline float fract(float x) {
  float r = x - floor(x);
  return r >= 1.0f ? 0x1.fffffep-1f : r;
}

// r = x - n, |r| <= 1/2, is exact; the sign of the function is that of n.
inline float sinpi(float x) {
  float n = rint(x), r = x - n;
  float s = sin(r * 3.14159265358979f);
  return rint(n * 0.5f) * 2.0f == n ? s : -s;
}
inline float cospi(float x) {
  float n = rint(x), r = fabs(x - n);
  float c = r <= 0.25f ? cos(r * 3.14159265358979f) : sin((0.5f - r) * 3.14159265358979f);
  return rint(n * 0.5f) * 2.0f == n ? c : -c;
}
inline float tanpi(float x) { return sinpi(x) / cospi(x); }

inline float atan2(float y, float x) { return __builtin_atan2f(y, x); }
inline float copysign(float x, float y) { return __builtin_elementwise_copysign(x, y); }
inline float divide(float x, float y) { return x / y; }
inline float fdim(float x, float y) { return x > y ? x - y : x != x || y != y ? x + y : 0.0f; }
inline float fmax(float x, float y) { return __builtin_elementwise_max(x, y); }
inline float fmin(float x, float y) { return __builtin_elementwise_min(x, y); }
inline float max(float x, float y) { return fmax(x, y); }
inline float min(float x, float y) { return fmin(x, y); }
inline float fmod(float x, float y) { return __builtin_fmodf(x, y); }
inline float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
inline float pow(float x, float y) { return __builtin_elementwise_pow(x, y); }
inline float powr(float x, float y) { return x < 0.0f ? __builtin_nanf("") : pow(x, y); }

inline float fma(float a, float b, float c) { return __builtin_elementwise_fma(a, b, c); }
inline float fmax3(float x, float y, float z) { return fmax(x, fmax(y, z)); }
inline float fmin3(float x, float y, float z) { return fmin(x, fmin(y, z)); }
inline float fmedian3(float x, float y, float z) { return fmax(fmin(x, y), fmin(fmax(x, y), z)); }
inline float max3(float x, float y, float z) { return fmax3(x, y, z); }
inline float min3(float x, float y, float z) { return fmin3(x, y, z); }
inline float median3(float x, float y, float z) { return fmedian3(x, y, z); }
inline float clamp(float x, float low, float high) { return fmin(fmax(x, low), high); }
inline float saturate(float x) { return clamp(x, 0.0f, 1.0f); }

}  // namespace precise

namespace fast {

// Where the specification gives a formula, the formula, with the overflows and cancellations it has.
inline float acosh(float x) { return precise::log(x + precise::sqrt(x * x - 1.0f)); }
inline float asinh(float x) { return precise::log(x + precise::sqrt(x * x + 1.0f)); }
inline float atanh(float x) { return 0.5f * precise::log((1.0f + x) / (1.0f - x)); }
inline float cosh(float x) { return 0.5f * (precise::exp(x) + precise::exp(-x)); }
inline float exp10(float x) { return precise::exp2(x * 3.32192809488736f); }
inline float log10(float x) { return precise::log2(x) * 0.301029995663981f; }
inline float sinh(float x) { return 0.5f * (precise::exp(x) - precise::exp(-x)); }
inline float tan(float x) { return precise::sin(x) * (1.0f / precise::cos(x)); }
inline float tanh(float x) {
  float t = precise::exp(2.0f * x);
  return (t - 1.0f) / (t + 1.0f);
}
inline float tanpi(float x) { return tan(x * 3.14159265358979f); }
inline float fmod(float x, float y) { return x - y * precise::trunc(x / y); }
inline float pow(float x, float y) { return precise::exp2(y * precise::log2(x)); }
inline float powr(float x, float y) { return pow(x, y); }

}  // namespace fast

// The functions by number of arguments: with formulas of their own in fast, shared by both, and those whose half
// variant is not just the float one, rounded.
// clang-format off
#define MPSK_MATH_WITH_FORMULA_1(M) \
  M(acosh) M(asinh) M(atanh) M(cosh) M(exp10) M(log10) M(sinh) M(tan) M(tanh) M(tanpi)
#define MPSK_MATH_WITH_FORMULA_2(M) M(fmod) M(pow) M(powr)
#define MPSK_MATH_SHARED_1(M)                                                                                      \
  M(acos) M(asin) M(atan) M(ceil) M(cos) M(cospi) M(exp) M(exp2) M(fabs) M(abs) M(floor) M(log) M(log2)   \
  M(rint) M(round) M(rsqrt) M(saturate) M(sin) M(sinpi) M(sqrt) M(trunc)
#define MPSK_MATH_SHARED_2(M) M(atan2) M(copysign) M(divide) M(fdim) M(fmax) M(fmin) M(max) M(min)
#define MPSK_MATH_3(M) M(fmax3) M(fmin3) M(fmedian3) M(max3) M(min3) M(median3) M(clamp)
#define MPSK_MATH_NOT_HALF(M) M(fract) M(nextafter) M(fma)
// clang-format on

namespace precise {
#define MPSK_LIFT(name) MPSK_LIFT1(float, name)
MPSK_MATH_WITH_FORMULA_1(MPSK_LIFT)
MPSK_MATH_SHARED_1(MPSK_LIFT)
#undef MPSK_LIFT
#define MPSK_LIFT(name) MPSK_LIFT2(float, name)
MPSK_MATH_WITH_FORMULA_2(MPSK_LIFT)
MPSK_MATH_SHARED_2(MPSK_LIFT)
#undef MPSK_LIFT
#define MPSK_LIFT(name) MPSK_LIFT3(float, name)
MPSK_MATH_3(MPSK_LIFT)
#undef MPSK_LIFT
MPSK_LIFT1(float, fract)
MPSK_LIFT2(float, nextafter)
MPSK_LIFT3(float, fma)
MPSK_MATH_WITH_FORMULA_1(MPSK_BFLOAT1)
MPSK_MATH_SHARED_1(MPSK_BFLOAT1)
MPSK_BFLOAT1(fract)
MPSK_MATH_WITH_FORMULA_2(MPSK_BFLOAT2)
MPSK_MATH_SHARED_2(MPSK_BFLOAT2)
MPSK_MATH_3(MPSK_BFLOAT3)
MPSK_BFLOAT3(fma)
}  // namespace precise

namespace fast {
#define MPSK_LIFT(name) MPSK_LIFT1(float, name)
MPSK_MATH_WITH_FORMULA_1(MPSK_LIFT)
#undef MPSK_LIFT
#define MPSK_LIFT(name) MPSK_LIFT2(float, name)
MPSK_MATH_WITH_FORMULA_2(MPSK_LIFT)
#undef MPSK_LIFT
MPSK_MATH_WITH_FORMULA_1(MPSK_BFLOAT1)
MPSK_MATH_WITH_FORMULA_2(MPSK_BFLOAT2)
#define MPSK_SHARE(name) using precise::name;
MPSK_MATH_SHARED_1(MPSK_SHARE)
MPSK_MATH_SHARED_2(MPSK_SHARE)
MPSK_MATH_3(MPSK_SHARE)
MPSK_MATH_NOT_HALF(MPSK_SHARE)
#undef MPSK_SHARE
}  // namespace fast

// The functions whose second result goes through a reference, or whose other argument is of another type.
#define MPSK_LIFT_REFERENCE(T, name, U)                                                                         \
  inline vec<T, 2> name(vec<T, 2> x, thread vec<U, 2>& y) { return vec<T, 2>(name(x.x, y.x), name(x.y, y.y)); } \
  inline vec<T, 3> name(vec<T, 3> x, thread vec<U, 3>& y) {                                                     \
    return vec<T, 3>(name(x.x, y.x), name(x.y, y.y), name(x.z, y.z));                                           \
  }                                                                                                             \
  inline vec<T, 4> name(vec<T, 4> x, thread vec<U, 4>& y) {                                                     \
    return vec<T, 4>(name(x.x, y.x), name(x.y, y.y), name(x.z, y.z), name(x.w, y.w));                           \
  }
namespace precise {
inline float sincos(float x, thread float& cosine) {
  cosine = cos(x);
  return sin(x);
}
inline float frexp(float x, thread int& exponent) {
  int e = 0;
  float m = __builtin_frexpf(x, &e);
  exponent = e;
  return m;
}
inline float modf(float x, thread float& whole) {
  whole = trunc(x);
  return copysign(fabs(x) == __builtin_inff() ? 0.0f : x - whole, x);
}
inline float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
inline int ilogb(float x) { return __builtin_ilogbf(x); }
MPSK_LIFT_REFERENCE(float, sincos, float)
MPSK_LIFT_REFERENCE(float, frexp, int)
MPSK_LIFT_REFERENCE(float, modf, float)
MPSK_LIFT1_TO(int, float, ilogb)
#define MPSK_LDEXP(T)                                                                                        \
  inline vec<T, 2> ldexp(vec<T, 2> x, vec<int, 2> k) { return vec<T, 2>(ldexp(x.x, k.x), ldexp(x.y, k.y)); } \
  inline vec<T, 3> ldexp(vec<T, 3> x, vec<int, 3> k) {                                                       \
    return vec<T, 3>(ldexp(x.x, k.x), ldexp(x.y, k.y), ldexp(x.z, k.z));                                     \
  }                                                                                                          \
  inline vec<T, 4> ldexp(vec<T, 4> x, vec<int, 4> k) {                                                       \
    return vec<T, 4>(ldexp(x.x, k.x), ldexp(x.y, k.y), ldexp(x.z, k.z), ldexp(x.w, k.w));                    \
  }
MPSK_LDEXP(float)
}  // namespace precise
#define MPSK_MATH_REFERENCE(M) M(sincos) M(frexp) M(modf) M(ldexp) M(ilogb)
namespace fast {
#define MPSK_SHARE(name) using precise::name;
MPSK_MATH_REFERENCE(MPSK_SHARE)
#undef MPSK_SHARE
}  // namespace fast

// Without a namespace: the variant of the math mode.
#ifdef __MPSK_MATH_MODE_FAST__
#define MPSK_USE(name) using fast::name;
#else
#define MPSK_USE(name) using precise::name;
#endif
MPSK_MATH_WITH_FORMULA_1(MPSK_USE)
MPSK_MATH_WITH_FORMULA_2(MPSK_USE)
MPSK_MATH_SHARED_1(MPSK_USE)
MPSK_MATH_SHARED_2(MPSK_USE)
MPSK_MATH_3(MPSK_USE)
MPSK_MATH_NOT_HALF(MPSK_USE)
MPSK_MATH_REFERENCE(MPSK_USE)
#undef MPSK_USE

// half. Three need more care than a float function rounded.
#define MPSK_HALF(name)                                              \
  inline half name(half x) { return half(precise::name(float(x))); } \
  MPSK_LIFT1(half, name)
MPSK_MATH_WITH_FORMULA_1(MPSK_HALF)
MPSK_MATH_SHARED_1(MPSK_HALF)
#undef MPSK_HALF
#define MPSK_HALF(name)                                                                \
  inline half name(half x, half y) { return half(precise::name(float(x), float(y))); } \
  MPSK_LIFT2(half, name)
MPSK_MATH_WITH_FORMULA_2(MPSK_HALF)
MPSK_MATH_SHARED_2(MPSK_HALF)
#undef MPSK_HALF
#define MPSK_HALF(name)                                                                                  \
  inline half name(half x, half y, half z) { return half(precise::name(float(x), float(y), float(z))); } \
  MPSK_LIFT3(half, name)
MPSK_MATH_3(MPSK_HALF)
#undef MPSK_HALF

inline half fract(half x) {
  half r = x - half(precise::floor(float(x)));
  return r >= half(1.0f) ? half(0x1.ffcp-1f) : r;
}
MPSK_LIFT1(half, fract)

inline half nextafter(half x, half y) {
  if (!(x == x) || !(y == y)) return x + y;
  if (x == y) return y;
  short bits = __builtin_bit_cast(short, x);
  if (x == half(0.0f)) return __builtin_bit_cast(half, short(y > x ? 1 : -32767));
  bits += (y > x) == (bits >= 0) ? 1 : -1;
  return __builtin_bit_cast(half, bits);
}
MPSK_LIFT2(half, nextafter)

// The product is exact in float. The sum is rounded to odd (its last bit records that something was lost), so that
// rounding it again, to half, gives what one rounding of the exact value gives.
inline half fma(half a, half b, half c) {
#pragma clang fp reassociate(off) contract(off)
  float p = float(a) * float(b), s = p + float(c);
  float bb = s - p, lost = (p - (s - bb)) + (float(c) - bb);
  uint bits = __builtin_bit_cast(uint, s);
  bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  if (finite && lost != 0.0f && !(bits & 1u)) bits += (lost > 0.0f) == (s > 0.0f) ? 1u : -1u;
  return half(__builtin_bit_cast(float, bits));
}
MPSK_LIFT3(half, fma)

inline half sincos(half x, thread half& cosine) {
  cosine = cos(x);
  return sin(x);
}
inline half frexp(half x, thread int& exponent) { return half(precise::frexp(float(x), exponent)); }
inline half modf(half x, thread half& whole) {
  float w;
  half r = half(precise::modf(float(x), w));
  whole = half(w);
  return r;
}
inline half ldexp(half x, int k) { return half(precise::ldexp(float(x), k)); }
inline int ilogb(half x) { return precise::ilogb(float(x)); }
MPSK_LIFT_REFERENCE(half, sincos, half)
MPSK_LIFT_REFERENCE(half, frexp, int)
MPSK_LIFT_REFERENCE(half, modf, half)
MPSK_LIFT1_TO(int, half, ilogb)
MPSK_LDEXP(half)
#undef MPSK_LDEXP
#undef MPSK_LIFT_REFERENCE

// <metal_common>
#define MPSK_COMMON(T)                                                                                 \
  inline T mix(T x, T y, T a) { return x + (y - x) * a; }                                              \
  inline T sign(T x) { return x > T(0.0f) ? T(1.0f) : x < T(0.0f) ? T(-1.0f) : x == x ? x : T(0.0f); } \
  inline T step(T edge, T x) { return x < edge ? T(0.0f) : T(1.0f); }                                  \
  inline T smoothstep(T low, T high, T x) {                                                            \
    T t = clamp((x - low) / (high - low), T(0.0f), T(1.0f));                                           \
    return t * t * (T(3.0f) - T(2.0f) * t);                                                            \
  }                                                                                                    \
  MPSK_LIFT3(T, mix);                                                                                  \
  MPSK_LIFT1(T, sign);                                                                                 \
  MPSK_LIFT2(T, step);                                                                                 \
  MPSK_LIFT3(T, smoothstep);
MPSK_COMMON(float)
MPSK_COMMON(half)
#undef MPSK_COMMON
MPSK_BFLOAT3(mix)
MPSK_BFLOAT1(sign)
MPSK_BFLOAT2(step)
MPSK_BFLOAT3(smoothstep)
#undef MPSK_MATH_WITH_FORMULA_1
#undef MPSK_MATH_WITH_FORMULA_2
#undef MPSK_MATH_SHARED_1
#undef MPSK_MATH_SHARED_2
#undef MPSK_MATH_3
#undef MPSK_MATH_NOT_HALF
#undef MPSK_MATH_REFERENCE

MPSK_END

#pragma float_control(pop)
