// Every activation kernel there is.
#pragma once

// X(dtype, Metal type), named gated_forward_<dtype> and gated_backward_<dtype>
#define GATED_FORWARD_VARIANTS(X) \
  X(f32, float)                   \
  X(f16, half)                    \
  X(bf16, bfloat)

#define GATED_BACKWARD_VARIANTS(X) \
  X(f32, float)                    \
  X(f16, half)                     \
  X(bf16, bfloat)
