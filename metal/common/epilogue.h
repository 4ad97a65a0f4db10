// What happens to a product between its sum in fp32 and the one rounding: bias, activation, residual.
#pragma once

#include <metal_stdlib>

#include "common/activations.h"

namespace mpsk {

using namespace metal;

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
