// What the activation kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum activation_buffer {
  activation_buffer_gate = 0,
  activation_buffer_up = 1,
  activation_buffer_out = 2,  // in the backward pass: the gradient of out
  activation_buffer_gate_gradient = 3,
  activation_buffer_up_gradient = 4,
  activation_buffer_params = 5,
};

// Function constants, all bool. The ids of this family: 500 to 599. At most one activation.
enum activation_constant {
  activation_constant_relu = 500,
  activation_constant_silu = 501,
  activation_constant_gelu = 502,       // with the error function
  activation_constant_gelu_tanh = 503,  // its approximation
  activation_constant_packs = 504,      // 16 bytes of elements, from any multiple of them on, lie together and aligned
};

enum { activation_max_dims = 16 };       // that remain after the glue has merged those that one stride describes
enum { activation_threads = 256 };       // of a threadgroup
enum { activation_grid_width = 65536 };  // threadgroups along x; y takes the rest
enum { gated_operands = 5 };             // the buffers above that hold elements

// Strides and offsets in elements. Dimensions are innermost first.
struct gated_params {
  int64_t strides[gated_operands][activation_max_dims];
  int64_t offsets[gated_operands];  // of the first element, from where the buffer is bound
  uint64_t count;                   // of elements of out
  uint64_t columns;                 // the innermost size
  uint32_t sizes[activation_max_dims];
  uint32_t dims;
  uint32_t pad;
};

static_assert(sizeof(gated_params) == 768, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(gated_params, offsets) == 640);
static_assert(offsetof(gated_params, count) == 680);
static_assert(offsetof(gated_params, sizes) == 696);
static_assert(offsetof(gated_params, dims) == 760);
#endif
