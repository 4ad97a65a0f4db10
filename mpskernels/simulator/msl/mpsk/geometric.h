// <metal_geometric>
#pragma once

MPSK_BEGIN

#define MPSK_GEOMETRIC(T, n)                                                                                \
  inline T dot(vec<T, n> x, vec<T, n> y) {                                                                  \
    T sum = x[0] * y[0];                                                                                    \
    for (int i = 1; i < n; i++) sum += x[i] * y[i];                                                         \
    return sum;                                                                                             \
  }                                                                                                         \
  inline T length_squared(vec<T, n> x) { return dot(x, x); }                                                \
  inline T length(vec<T, n> x) { return sqrt(dot(x, x)); }                                                  \
  inline T distance_squared(vec<T, n> x, vec<T, n> y) { return length_squared(x - y); }                     \
  inline T distance(vec<T, n> x, vec<T, n> y) { return length(x - y); }                                     \
  inline vec<T, n> normalize(vec<T, n> x) { return x * rsqrt(dot(x, x)); }                                  \
  inline vec<T, n> faceforward(vec<T, n> v, vec<T, n> i, vec<T, n> reference) {                             \
    return dot(reference, i) < T(0.0f) ? +v : -v;                                                           \
  }                                                                                                         \
  inline vec<T, n> reflect(vec<T, n> i, vec<T, n> normal) { return i - T(2.0f) * dot(normal, i) * normal; } \
  inline vec<T, n> refract(vec<T, n> i, vec<T, n> normal, T eta) {                                          \
    T d = dot(normal, i), k = T(1.0f) - eta * eta * (T(1.0f) - d * d);                                      \
    return k < T(0.0f) ? vec<T, n>(T(0.0f)) : eta * i - (eta * d + sqrt(k)) * normal;                       \
  }
#define MPSK_CROSS(T) \
  inline vec<T, 3> cross(vec<T, 3> x, vec<T, 3> y) { return x.yzx * y.zxy - x.zxy * y.yzx; }
MPSK_GEOMETRIC(float, 2)
MPSK_GEOMETRIC(float, 3)
MPSK_GEOMETRIC(float, 4)
MPSK_GEOMETRIC(half, 2)
MPSK_GEOMETRIC(half, 3)
MPSK_GEOMETRIC(half, 4)
MPSK_CROSS(float)
MPSK_CROSS(half)
#undef MPSK_GEOMETRIC
#undef MPSK_CROSS

MPSK_END
