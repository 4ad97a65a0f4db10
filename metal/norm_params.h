// What the norm kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

// Tensors that an op has not are not bound. Parameters, one value for each column, and the modulation, one for each
// column of each sample, are in the dtype of x or in float32.
enum norm_buffer {
  norm_buffer_x = 0,  // backward of an op with a residual: its sum with x
  norm_buffer_residual = 1,
  norm_buffer_gate = 2,
  norm_buffer_weight = 3,
  norm_buffer_bias = 4,
  norm_buffer_scale = 5,
  norm_buffer_shift = 6,
  norm_buffer_out = 7,
  norm_buffer_residual_out = 8,
  norm_buffer_params = 9,
  // of the backward pass alone
  norm_buffer_grad = 10,           // of out
  norm_buffer_grad_residual = 11,  // of residual_out
  norm_buffer_grad_x = 12,
  norm_buffer_grad_gate = 13,
  norm_buffer_partials = 14,  // float32 (threadgroups, 1 or 2 sums, columns)
  norm_buffer_grad_weight = 15,
  norm_buffer_grad_bias = 16,
  norm_buffer_grad_scale = 17,
  norm_buffer_grad_shift = 18,
  // of group norm
  norm_buffer_parts = 19,       // float4 for each part of a row
  norm_buffer_statistics = 20,  // norm_statistics for each row
  norm_buffer_parts_in = 21,    // the same parts, of an earlier launch
};

// Function constants, all bool. The ids of this family: 300 to 399.
enum norm_constant {
  norm_constant_centered = 300,  // the mean is subtracted: layer norm; else root mean square
  norm_constant_residual = 301,
  norm_constant_gate = 302,
  norm_constant_gate_first = 303,  // the gate multiplies x, not the normalized x
  norm_constant_weight = 304,
  norm_constant_bias = 305,
  norm_constant_parameters_f32 = 306,  // weight and bias are float32 and x is not
  norm_constant_modulation = 307,      // scale and shift
  norm_constant_modulation_f32 = 308,
  norm_constant_vectors = 309,  // of all: columns are adjacent, a multiple of 4, and each 4 of them are aligned
  norm_constant_grad_x = 310,   // the gradient of x, and of the gate, is asked for
  norm_constant_grad_parameters = 311,
  norm_constant_two_sums = 312,  // the gradients of the parameters need the sum of grad beside that of grad * x_hat
  // of group norm
  norm_constant_channels_last = 313,
  norm_constant_silu = 314,
  norm_constant_parts_out = 315,      // the sums of the parts are what is written
  norm_constant_statistics_in = 316,  // the statistics of the rows are known
  norm_constant_out = 317,            // the normalized x is what is written
  norm_constant_grad_gate = 318,      // beside grad_x, where there is a gate
  norm_constant_held = 319,           // parameters stay in registers from row to row
  norm_constant_ahead = 320,          // the next row is read before the sums of this one
  norm_constant_kept = 321,           // backward: the elements of a row stay in registers until it is written
  // of group norm
  norm_constant_parts_in = 322,  // the sums of the parts are known
  norm_constant_staged = 323,    // parameters lie in threadgroup memory
};

enum { norm_max_dims = 16 };         // leading dimensions, after the glue has merged those that one stride describes
enum { norm_row_threads = 1024 };    // the most that share a row
enum { norm_shared_threads = 256 };  // of a threadgroup that takes several rows at once, without sums of it
enum { norm_grid_width = 1 << 16 };  // threadgroups along x; y takes the rest, so that no count of threads passes 2^32
enum { norm_loop_rows = 32 };        // the most that a threadgroup of the backward loop kernel walks over at once
enum { norm_parameter_columns = 32 };  // columns of a threadgroup of norm_parameters

// Where the rows of a tensor are. Strides in elements.
struct norm_rows {
  int64_t strides[norm_max_dims];  // of the leading dimensions, innermost first
  int64_t column_stride;
  uint32_t sizes[norm_max_dims];
  uint32_t dims;  // leading dimensions, at least 1
  uint32_t padding;
};

// What the glue makes is contiguous. A row of 2^k times a number of moderate size has the same normalized values: the
// kernels multiply by scale_large = 2^-k the rows whose squares might pass the range of float32, and others by `scale`.
struct norm_params {
  norm_rows x;
  norm_rows residual;  // in the backward pass grad_residual
  norm_rows gate;
  norm_rows grad;
  int64_t weight_stride;
  int64_t bias_stride;
  int64_t scale_stride;  // from sample to sample
  int64_t scale_column_stride;
  int64_t shift_stride;
  int64_t shift_column_stride;
  uint32_t rows;
  uint32_t columns;  // less than 2^31
  uint32_t simdgroups_per_row;
  uint32_t rows_per_threadgroup;  // at once, each of another part
  uint32_t samples;               // 1 without a modulation
  uint32_t rows_per_sample;
  uint32_t rows_per_part;  // rows of a sample that the same simdgroups take in turn
  uint32_t parts_per_sample;
  float weight_offset;
  float scale;
  float scale_large;
  float large;       // from which sum of |x| on, times 2^-32, scale_large is taken
  float eps;         // times scale^2. At least the smallest normal float, so that a row of zeros stays zero
  float eps_large;   // times scale_large^2, likewise
  float mean_scale;  // what makes a mean, times `scale`, of the sum of x times 2^-32
  float mean_scale_large;
};

enum { norm_part_elements = 16384 };  // the most of a row of group norm that a threadgroup holds in registers
enum { norm_merged_parts = 32 };      // of a row, that each of its threadgroups merges; more take a launch of their own
enum { norm_staged_channels = 1024 };  // of all parts of a threadgroup, whose parameters it stages

// Of samples, channels and positions, in elements.
struct group_norm_strides {
  int64_t sample;
  int64_t channel;
  int64_t position;
};

// A row is a group of channels of a sample. Its elements are numbered as they lie in memory: channel by channel, or,
// with channels last, position by position.
struct group_norm_params {
  group_norm_strides x;
  group_norm_strides grad;
  group_norm_strides out;  // or of grad_x
  int64_t weight_stride;
  int64_t bias_stride;
  uint32_t rows;
  uint32_t groups;
  uint32_t group_channels;
  uint32_t positions;
  uint32_t columns;  // elements of a row, less than 2^31
  uint32_t part_elements;
  uint32_t parts_per_row;
  uint32_t simdgroups_per_row;    // of a part
  uint32_t rows_per_threadgroup;  // parts at once
  float scale;                    // these as in norm_params
  float scale_large;
  float large;
  float eps;
  float eps_large;
  float mean_scale;  // of a whole part, as in norm_params
  float mean_scale_large;
  float last_mean_scale;  // of the last part of a row
  float last_mean_scale_large;
};

static_assert(sizeof(norm_rows) == 208, "no implicit padding");
static_assert(sizeof(norm_params) == 4 * 208 + 6 * 8 + 16 * 4, "no implicit padding");
static_assert(sizeof(group_norm_params) == 11 * 8 + 18 * 4, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(group_norm_params, rows) == 88);
static_assert(offsetof(group_norm_params, last_mean_scale_large) == 156);
static_assert(offsetof(norm_rows, column_stride) == 128);
static_assert(offsetof(norm_rows, dims) == 200);
static_assert(offsetof(norm_params, grad) == 624);
static_assert(offsetof(norm_params, weight_stride) == 832);
static_assert(offsetof(norm_params, rows) == 880);
static_assert(offsetof(norm_params, eps_large) == 932);
#endif
