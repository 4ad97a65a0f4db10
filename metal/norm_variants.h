// Every norm kernel there is. A row kernel keeps up to `columns` columns in registers.
#pragma once

// X(dtype, Metal type, columns), named rms_norm_row_<dtype>_d<columns>
#define RMS_NORM_ROW_VARIANTS(X) \
  X(f32, float, 4096)            \
  X(f32, float, 16384)           \
  X(f16, half, 4096)             \
  X(f16, half, 16384)            \
  X(bf16, bfloat, 4096)          \
  X(bf16, bfloat, 16384)

// X(dtype, Metal type), named rms_norm_loop_<dtype>
#define RMS_NORM_LOOP_VARIANTS(X) \
  X(f32, float)                   \
  X(f16, half)                    \
  X(bf16, bfloat)
