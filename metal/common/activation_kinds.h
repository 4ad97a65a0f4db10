// The activations that kernels and glue name by number.
#pragma once

enum activation_kind {
  activation_none = 0,
  activation_relu = 1,
  activation_gelu = 2,  // of the exact normal distribution
  activation_gelu_tanh = 3,
  activation_silu = 4,
};
