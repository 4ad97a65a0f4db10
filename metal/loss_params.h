// What the loss kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum loss_buffer {
  loss_buffer_logits = 0,
  loss_buffer_targets_i32 = 1,
  loss_buffer_targets_i64 = 2,
  loss_buffer_loss = 3,      // of each row, float32; reduced: the one
  loss_buffer_lse = 4,       // log of the sum of exponentials of each row, float32
  loss_buffer_scale = 5,     // one float32, what the gradient of each row is multiplied by
  loss_buffer_upstream = 6,  // gradient of the loss: one float32, or one for each row
  loss_buffer_gradient = 7,  // of the logits
  loss_buffer_params = 8,
};

// Function constants, all bool. The ids of this family: 600 to 699.
enum loss_constant {
  loss_constant_targets_i64 = 600,  // of int64, not int32
  loss_constant_loss = 601,         // the first pass runs: loss and lse are written; without, lse is read
  loss_constant_gradient = 602,     // the second pass runs
  loss_constant_in_place = 603,     // the gradient takes the place of the logits, which are not bound
  loss_constant_scale = 604,        // there is a scale
  loss_constant_upstream = 605,     // there is an upstream gradient
  loss_constant_soft_cap = 606,
  loss_constant_packs = 607,  // 16 bytes of classes, from any multiple of them on, lie together and aligned
  loss_constant_held = 608,   // of both passes: rows fit the registers of their threads
};

enum { loss_max_dims = 16 };       // leading dimensions, after the glue has merged those that one stride describes
enum { loss_row_threads = 1024 };  // the most that share a row
enum { loss_held_chunks = 8 };     // of 16 bytes of classes, what a thread holds at most
enum { loss_grid_width = 65536 };  // threadgroups along x; y takes the rest
enum { loss_reduce_threads = 1024 };
enum loss_operand { loss_operand_logits = 0, loss_operand_targets = 1, loss_operand_upstream = 2, loss_operands = 3 };

// Strides in elements; what is written is contiguous. Dimensions are innermost first.
struct loss_params {
  int64_t strides[loss_operands][loss_max_dims];  // of the leading dimensions
  int64_t class_stride;                           // of the logits
  int64_t ignore_index;
  uint32_t sizes[loss_max_dims];
  uint32_t dims;         // leading dimensions, at least 1
  uint32_t rows;         // their product
  uint32_t classes;      // of the logits given, less than 2^31
  uint32_t first_class;  // the logits are a slice of all classes, from this one on
  uint32_t all_classes;
  uint32_t simdgroups_per_row;
  uint32_t rows_per_threadgroup;
  float label_smoothing;
  float z_loss;
  float soft_cap;
};

// A block of `count` elements, put `offset` elements into a tensor.
struct loss_copy_params {
  uint64_t count;
  uint64_t offset;
};

static_assert(sizeof(loss_params) == 504, "no implicit padding");
static_assert(sizeof(loss_copy_params) == 16, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(loss_params, class_stride) == 384);
static_assert(offsetof(loss_params, sizes) == 400);
static_assert(offsetof(loss_params, dims) == 464);
static_assert(offsetof(loss_params, soft_cap) == 500);
#endif
