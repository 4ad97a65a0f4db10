// What the softmax kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum softmax_buffer {
  softmax_buffer_x = 0,  // in the backward pass there is one with a soft cap only
  softmax_buffer_mask = 1,
  softmax_buffer_mask_f32 = 2,
  softmax_buffer_mask_bool = 3,
  softmax_buffer_out = 4,
  softmax_buffer_gradient = 5,    // of out
  softmax_buffer_x_gradient = 6,  // of x
  softmax_buffer_params = 7,
};

// Function constants, all bool. The ids of this family: 700 to 799.
enum softmax_constant {
  softmax_constant_log = 700,        // log_softmax
  softmax_constant_mask = 701,       // an additive mask in the dtype of x
  softmax_constant_mask_f32 = 702,   // ... in float32
  softmax_constant_mask_bool = 703,  // a mask that is true for what takes part
  softmax_constant_causal = 704,     // column j of row i takes part where j <= i
  softmax_constant_soft_cap = 705,
  softmax_constant_packs = 706,  // 16 bytes of columns, from any multiple of them on, lie together and aligned
};

enum { softmax_max_dims = 16 };       // leading dimensions, after the glue has merged those that one stride describes
enum { softmax_row_threads = 1024 };  // the most that share a row
enum { softmax_grid_width = 65536 };  // threadgroups along x; y takes the rest
enum softmax_operand {
  softmax_operand_x = 0,         // forward: x; backward: out
  softmax_operand_mask = 1,      // forward: mask; backward: x
  softmax_operand_gradient = 2,  // backward: the gradient of out
  softmax_operands = 3,
};

// Strides in elements; what is written is contiguous. Dimensions are innermost first.
struct softmax_params {
  int64_t strides[softmax_operands][softmax_max_dims];  // of the leading dimensions
  int64_t column_strides[softmax_operands];
  uint32_t sizes[softmax_max_dims];
  uint32_t dims;     // leading dimensions, at least 1
  uint32_t rows;     // their product
  uint32_t columns;  // less than 2^31
  uint32_t queries;  // the second last size of x, that causal rows count by
  uint32_t simdgroups_per_row;
  uint32_t rows_per_threadgroup;
  float scale;
  float soft_cap;
};

static_assert(sizeof(softmax_params) == 504, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(softmax_params, column_strides) == 384);
static_assert(offsetof(softmax_params, sizes) == 408);
static_assert(offsetof(softmax_params, dims) == 472);
static_assert(offsetof(softmax_params, soft_cap) == 500);
#endif
