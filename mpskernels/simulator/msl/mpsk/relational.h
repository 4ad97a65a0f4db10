// <metal_relational>. Classes of numbers are told by their bits: fast math would compare NaNs away.
#pragma once

MPSK_BEGIN

// Bits of the magnitude, and the magnitudes of infinity and of the smallest normal number.
#define MPSK_RELATIONAL(T, U, magnitude, infinite, normal)                                              \
  inline bool isfinite(T x) { return (__builtin_bit_cast(U, x) & magnitude) < infinite; }               \
  inline bool isinf(T x) { return (__builtin_bit_cast(U, x) & magnitude) == infinite; }                 \
  inline bool isnan(T x) { return (__builtin_bit_cast(U, x) & magnitude) > infinite; }                  \
  inline bool isnormal(T x) { return isfinite(x) && (__builtin_bit_cast(U, x) & magnitude) >= normal; } \
  inline bool signbit(T x) { return __builtin_bit_cast(U, x) > magnitude; }                             \
  inline bool isunordered(T x, T y) { return isnan(x) || isnan(y); }                                    \
  inline bool isordered(T x, T y) { return !isunordered(x, y); }                                        \
  MPSK_LIFT1_TO(bool, T, isfinite);                                                                     \
  MPSK_LIFT1_TO(bool, T, isinf);                                                                        \
  MPSK_LIFT1_TO(bool, T, isnan);                                                                        \
  MPSK_LIFT1_TO(bool, T, isnormal);                                                                     \
  MPSK_LIFT1_TO(bool, T, signbit);                                                                      \
  MPSK_LIFT2_TO(bool, T, isunordered);                                                                  \
  MPSK_LIFT2_TO(bool, T, isordered);
MPSK_RELATIONAL(float, uint, 0x7fffffffu, 0x7f800000u, 0x00800000u)
MPSK_RELATIONAL(half, ushort, 0x7fff, 0x7c00, 0x0400)
MPSK_RELATIONAL(bfloat, ushort, 0x7fff, 0x7f80, 0x0080)
#undef MPSK_RELATIONAL

inline bool all(bool x) { return x; }
inline bool all(vec<bool, 2> x) { return x.x && x.y; }
inline bool all(vec<bool, 3> x) { return x.x && x.y && x.z; }
inline bool all(vec<bool, 4> x) { return x.x && x.y && x.z && x.w; }
inline bool any(bool x) { return x; }
inline bool any(vec<bool, 2> x) { return x.x || x.y; }
inline bool any(vec<bool, 3> x) { return x.x || x.y || x.z; }
inline bool any(vec<bool, 4> x) { return x.x || x.y || x.z || x.w; }

#define MPSK_CHOOSE(T)                                    \
  inline T select(T a, T b, bool c) { return c ? b : a; } \
  MPSK_LIFT3_TO(bool, T, select)
MPSK_CHOOSE(bool)
MPSK_CHOOSE(char)
MPSK_CHOOSE(uchar)
MPSK_CHOOSE(short)
MPSK_CHOOSE(ushort)
MPSK_CHOOSE(int)
MPSK_CHOOSE(uint)
MPSK_CHOOSE(long)
MPSK_CHOOSE(ulong)
MPSK_CHOOSE(half)
MPSK_CHOOSE(bfloat)
MPSK_CHOOSE(float)
#undef MPSK_CHOOSE

MPSK_END
