// Every rope kernel there is.
#pragma once

// X(dtype, Metal type), named rope_rotate_<dtype>
#define ROPE_ROTATE_VARIANTS(X) \
  X(f32, float)                 \
  X(f16, half)                  \
  X(bf16, bfloat)
