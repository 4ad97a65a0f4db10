// What happens to a product between its sum in fp32 and the one rounding: bias, activation, residual.
#pragma once

#include <metal_stdlib>

#include "common/activation_kinds.h"

namespace mpsk {

using namespace metal;

// Half of erfc(t), for t >= 0, given exp(-t * t): a polynomial in 1 / (1 + t / 2) for exp(t * t) * erfc(t), fitted to a
// relative error of 4.4e-8 on [0, 10.2], past which float has no number for erfc.
inline float half_erfc(float t, float exp_minus_t2) {
  const float u = 1.0f / (1.0f + 0.5f * t);
  float p = -0.059121791f;
  p = p * u + 0.28483319f;
  p = p * u - 0.48773599f;
  p = p * u + 0.27868271f;
  p = p * u - 0.027051715f;
  p = p * u + 0.20286818f;
  p = p * u + 0.24305762f;
  p = p * u + 0.28238168f;
  p = p * u + 0.28208604f;
  return 0.5f * p * u * exp_minus_t2;
}

// The normal distribution at x, and its density: what gelu and its derivative are made of.
struct normal_at {
  float cumulative;
  float density;
};
inline normal_at normal(float x) {
  const float exp_minus = precise::exp(-0.5f * x * x);  // exp(-t * t)
  const float tail = half_erfc(abs(x) * 0.70710678f, exp_minus);
  return {x > 0.0f ? 1.0f - tail : tail, 0.39894228f * exp_minus};
}

// 1 / (1 + exp(-x)) as top / bottom, without overflow; rest / bottom is what 1 exceeds it by.
struct fraction {
  float top;
  float bottom;
  float rest;
};
inline fraction sigmoid(float x) {
  const float small = precise::exp(-abs(x));
  return {x < 0.0f ? small : 1.0f, 1.0f + small, x < 0.0f ? 1.0f : small};
}

// gelu_tanh(x) is x * sigmoid(this). Beyond 20 on either side the sigmoid is 0 or 1, and x^3 might overflow.
inline float gelu_tanh_argument(float x) {
  x = clamp(x, -20.0f, 20.0f);
  return 1.5957691f * (x + 0.044715f * x * x * x);
}

// Not by a comparison, which fast math may turn into a maximum: NaN stays NaN.
inline bool is_negative(float x) { return as_type<uint>(x) - 0x80000000u <= 0x7f800000u; }

// `kind` is an activation_kind, the same for all threads.
inline float activate(uint kind, float x) {
  switch (kind) {
    case activation_relu:
      return is_negative(x) ? 0.0f : x;
    case activation_gelu:
      return x * normal(x).cumulative;
    case activation_gelu_tanh: {
      const fraction s = sigmoid(gelu_tanh_argument(x));
      return x * s.top / s.bottom;
    }
    case activation_silu: {
      const fraction s = sigmoid(x);
      return x * s.top / s.bottom;
    }
    default:
      return x;
  }
}

// d activate(x) / dx; at 0, where relu has none, 0.
inline float activation_slope(uint kind, float x) {
  switch (kind) {
    case activation_relu:
      return x > 0.0f ? 1.0f : 0.0f;
    case activation_gelu: {
      const normal_at n = normal(x);
      return n.cumulative + x * n.density;
    }
    case activation_gelu_tanh: {
      const fraction s = sigmoid(gelu_tanh_argument(x));
      const float y = s.top / s.bottom;
      const float c = clamp(x, -20.0f, 20.0f);
      return y + x * y * (s.rest / s.bottom) * (1.5957691f + 0.21406445f * c * c);
    }
    case activation_silu: {
      const fraction s = sigmoid(x);
      const float y = s.top / s.bottom;
      return y + x * y * (s.rest / s.bottom);
    }
    default:
      return 1.0f;
  }
}

// Element (m, n) of a matrix at `data`.
struct matrix_strides {
  long m;
  long n;
  long at(ulong row, ulong column) const { return long(row) * m + long(column) * n; }
};

// Pointers are those of one product of a batch; one whose yes/no is false is not touched.
template <typename T>
struct epilogue {
  device T* out;
  const device T* bias;
  const device T* residual;
  device T* preactivation;  // of out's strides: the sum with its bias, rounded, for the backward pass
  device T* up;             // the same for the second product of a gated pair
  matrix_strides out_strides;
  matrix_strides bias_strides;
  matrix_strides residual_strides;
  uint activation;
  bool adds_bias;
  bool adds_residual;
  bool keeps_preactivation;

  // What the sum at (m, n) becomes, but for its rounding.
  float finish(float sum, ulong m, ulong n) const {
    if (adds_bias) {
      sum += float(bias[bias_strides.at(m, n)]);
    }
    if (keeps_preactivation) {
      preactivation[out_strides.at(m, n)] = T(sum);
    }
    sum = activate(activation, sum);
    if (adds_residual) {
      sum += float(residual[residual_strides.at(m, n)]);
    }
    return sum;
  }

  // The same for a gated pair of sums.
  float finish_gated(float gate_sum, float up_sum, ulong m, ulong n) const {
    if (keeps_preactivation) {
      preactivation[out_strides.at(m, n)] = T(gate_sum);
      up[out_strides.at(m, n)] = T(up_sum);
    }
    return activate(activation, gate_sum) * up_sum;
  }
};

}  // namespace mpsk
