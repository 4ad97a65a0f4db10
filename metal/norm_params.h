// What the norm kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum norm_buffer {
  norm_buffer_x = 0,
  norm_buffer_weight = 1,      // in the dtype of x, or
  norm_buffer_weight_f32 = 2,  // in float32
  norm_buffer_out = 3,
  norm_buffer_params = 4,
};

// Function constants, all bool. The ids of this family: 300 to 399.
enum norm_constant {
  norm_constant_weight = 300,      // there is a weight in the dtype of x
  norm_constant_weight_f32 = 301,  // there is a weight in float32
  norm_constant_vectors = 302,     // columns are adjacent and a multiple of 4, and each 4 of them are aligned
};

enum { norm_max_dims = 16 };         // leading dimensions, after the glue has merged those that one stride describes
enum { norm_row_threads = 1024 };    // the most that share a row
enum { norm_grid_width = 1 << 16 };  // threadgroups along x; y takes the rest, so that no count of threads passes 2^32

// Strides in elements; out is contiguous.
struct rms_norm_params {
  int64_t strides[norm_max_dims];  // of the leading dimensions of x, innermost first
  int64_t column_stride;           // of the last dimension of x
  int64_t weight_stride;
  uint32_t sizes[norm_max_dims];
  uint32_t dims;     // leading dimensions, at least 1
  uint32_t rows;     // their product
  uint32_t columns;  // the last dimension, less than 2^31
  uint32_t simdgroups_per_row;
  uint32_t rows_per_threadgroup;
  float eps;  // at least the smallest normal float, so that a row of zeros stays zero
};

static_assert(sizeof(rms_norm_params) == 232, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(rms_norm_params, column_stride) == 128);
static_assert(offsetof(rms_norm_params, sizes) == 144);
static_assert(offsetof(rms_norm_params, dims) == 208);
static_assert(offsetof(rms_norm_params, eps) == 228);
#endif
