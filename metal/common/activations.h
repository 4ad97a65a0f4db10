// Activations and their slopes, in fp32.
#pragma once

#include <metal_stdlib>

#include "common/activation_kinds.h"

namespace mpsk {

using namespace metal;

// A value and its slope. Only what is used of them is computed.
struct curve {
  float value;
  float slope;
};

// 1 / (1 + exp(-x)) and its complement to 1, neither by a difference of near numbers nor through infinity.
struct sigmoid {
  float of;
  float rest;
  explicit sigmoid(float x) {
    const float t = precise::exp(-abs(x));
    const float large = 1.0f / (1.0f + t), small = t * large;
    of = x < 0.0f ? small : large;
    rest = x < 0.0f ? large : small;
  }
};

inline curve silu_curve(float x) {
  const sigmoid s(x);
  return {x * s.of, s.of + s.of * (x * s.rest)};
}

// 0.5 (1 + tanh(u)) is the sigmoid of 2u, u = sqrt(2 / pi) (x + 0.044715 x^3). Where |x| > 16 it is 0 or 1.
inline curve gelu_tanh_curve(float x) {
  const float near = min(max(x, -16.0f), 16.0f);
  const float square = near * near;
  const sigmoid s(1.5957691216057308f * (near + 0.044715f * near * square));
  return {x * s.of, s.of + x * (s.of * s.rest * (1.5957691216057308f * (1.0f + 0.134145f * square)))};
}

// The normal distribution, P(X < x) = erfc(-x / sqrt(2)) / 2, by a polynomial for erfc(z) exp(z^2) / t in
// t = 1 / (1 + z / 2), whose relative error is below 2e-8 for 0 <= z <= 10 (fitted for this file, by Lawson's
// iteration); beyond, it is 0 in fp32. x^2 is split in two, as one rounding would be an error of x^2 / 2 in its last
// bit.
inline curve gelu_curve(float x) {
  const float z = min(abs(x), 14.0f);
  const float high = as_type<float>(as_type<uint>(z) & 0xfffff000u);
  const float rest = -0.5f * (z - high) * (z + high);
  const float correction = 1.0f + rest * (1.0f + rest * (0.5f + rest * (0.16666667f + rest * 0.041666667f)));
  const float bell = precise::exp(-0.5f * high * high) * correction;  // exp(-x^2 / 2)
  const float t = 1.0f / (1.0f + 0.35355339f * z);
  float poly = 0.012283876f;
  poly = poly * t - 0.12325469f;
  poly = poly * t + 0.42892838f;
  poly = poly * t - 0.67002242f;
  poly = poly * t + 0.42127424f;
  poly = poly * t - 0.09831762f;
  poly = poly * t + 0.22554184f;
  poly = poly * t + 0.23864484f;
  poly = poly * t + 0.28285703f;
  poly = poly * t + 0.28206450f;
  const float tail = 0.5f * bell * t * poly;  // P(X > |x|)
  const float below = x < 0.0f ? tail : 1.0f - tail;
  return {x * below, below + x * (0.3989422804f * bell)};
}

// Told by its bits, which fast math leaves alone: a NaN stays one.
inline curve relu_curve(float x) {
  const uint bits = as_type<uint>(x);
  const bool nan = (bits << 1) > 0xff000000u, positive = bits << 1 != 0 && bits >> 31 == 0;
  return {positive || nan ? x : 0.0f, positive || nan ? 1.0f : 0.0f};
}

// `kind` is an activation_kind, the same for all threads.
inline curve curve_at(uint kind, float x) {
  switch (kind) {
    case activation_relu:
      return relu_curve(x);
    case activation_gelu:
      return gelu_curve(x);
    case activation_gelu_tanh:
      return gelu_tanh_curve(x);
    case activation_silu:
      return silu_curve(x);
    default:
      return {x, 1.0f};
  }
}

inline float activate(uint kind, float x) { return curve_at(kind, x).value; }

// The gradient of x, of the gradient of the activation there. Where relu is flat, even an infinite one ends.
inline float descend(uint kind, curve at, float gradient) {
  return kind == activation_relu && at.slope == 0.0f ? 0.0f : gradient * at.slope;
}

}  // namespace mpsk
