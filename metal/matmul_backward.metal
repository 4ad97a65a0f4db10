// The parts of the matmul family's backward passes that are no matrix products.

#include <metal_stdlib>

#include "common/activations.h"
#include "matmul_params.h"
#include "matmul_variants.h"

using namespace metal;
using namespace mpsk;

constant bool has_activation [[function_constant(linear_backward_constant_activation)]];
constant bool sums_bias [[function_constant(linear_backward_constant_bias)]];

// Of a row of grad or preactivation, in elements. Rows that one stride describes need no division.
static long offset_of_row(ulong row, constant int64_t* strides, constant linear_backward_params& p) {
  long offset = 0;
  for (uint d = 0; d + 1 < p.dims; ++d) {
    offset += long(row % p.sizes[d]) * strides[d];
    row /= p.sizes[d];
  }
  return offset + long(row) * strides[p.dims - 1];
}

// linear_backward: out = grad * activation'(preactivation), and the column sums of that, which are the gradient of the
// bias, for chunks of rows: matmul_sum adds up the chunks.
//
// Grid: x: columns, by 32; y: chunks of rows. Threadgroup: (32, matmul_backward_simdgroups). Threadgroup bytes: 1024.
// Necessary: grad and preactivation read once, out written once; 4 bytes for each column and chunk.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(32 * matmul_backward_simdgroups)]] void linear_backward(
    const device T* grad [[buffer(linear_backward_buffer_grad)]],
    const device T* preactivation [[buffer(linear_backward_buffer_preactivation), function_constant(has_activation)]],
    device T* out [[buffer(linear_backward_buffer_out), function_constant(has_activation)]],
    device float* sums [[buffer(linear_backward_buffer_sums), function_constant(sums_bias)]],
    constant linear_backward_params& p [[buffer(linear_backward_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[matmul_backward_simdgroups][32];
  const ulong column = ulong(group.x) * 32 + lane;
  const bool exists = column < p.columns;
  const ulong first_row = ulong(group.y) * p.rows_per_chunk;
  const ulong row_end = min(p.rows, first_row + p.rows_per_chunk);
  float sum = 0.0f;
  for (ulong row = first_row + simd_index; row < row_end && exists; row += matmul_backward_simdgroups) {
    float value = float(grad[offset_of_row(row, p.grad_strides, p) + long(column) * p.grad_stride_column]);
    if (has_activation) {
      const long element =
          offset_of_row(row, p.preactivation_strides, p) + long(column) * p.preactivation_stride_column;
      value = descend(p.activation, curve_at(p.activation, float(preactivation[element])), value);
      out[row * p.columns + column] = T(value);
    }
    sum += value;
  }
  if (sums_bias) {
    partial[simd_index][lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes partial
    if (simd_index == 0 && exists) {
      float total = 0.0f;
      for (int i = 0; i < matmul_backward_simdgroups; ++i) {
        total += partial[i][lane];
      }
      sums[group.y * p.columns + column] = total;
    }
  }
}

// grouped_matmul_scatter: a threadgroup looks through all indices, matmul_threads at a time, for its
// matmul_scatter_rows rows of out, and adds up the rows that have them, in their order. Each thread has a column of the
// sums.
//
// Grid: x: columns, by matmul_threads; y: rows of out, by matmul_scatter_rows. Threadgroup: (matmul_threads).
// Threadgroup bytes: 16416. Necessary: each row read and each row of out written once. What the kernel adds: the
// indices are read from cache (rows of out / 16) * (columns / 256) times, with two barriers for each 256 of them, and a
// sum is read and written in threadgroup memory for each element of a row.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(matmul_threads)]] void grouped_matmul_scatter(
    const device T* rows [[buffer(grouped_matmul_scatter_buffer_rows)]],
    const device int* indices [[buffer(grouped_matmul_scatter_buffer_indices)]],
    device T* out [[buffer(grouped_matmul_scatter_buffer_out)]],
    constant grouped_matmul_scatter_params& p [[buffer(grouped_matmul_scatter_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simd_index [[simdgroup_index_in_threadgroup]]) {
  constexpr int simdgroups = matmul_threads / 32;
  threadgroup uint found[simdgroups];  // a bit for each of the indices looked at that is of these rows of out
  threadgroup float sums[matmul_scatter_rows * matmul_threads];
  threadgroup float* its_sums = sums + thread_index;
  const ulong column = ulong(group.x) * matmul_threads + thread_index;
  const uint first_out = group.y * matmul_scatter_rows;
  for (int r = 0; r < matmul_scatter_rows; ++r) {
    its_sums[r * matmul_threads] = 0.0f;
  }
  for (uint first = 0; first < p.rows; first += matmul_threads) {
    const uint row = first + thread_index;
    const bool ours = row < p.rows && uint(indices[long(row) * p.stride_index]) - first_out < matmul_scatter_rows;
    const uint bits = uint(static_cast<simd_vote::vote_t>(simd_ballot(ours)));
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the bits before have been read
    if (lane == 0) {
      found[simd_index] = bits;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes found
    for (int i = 0; i < simdgroups; ++i) {
      for (uint left = found[i]; left != 0; left &= left - 1) {
        if (column < p.columns) {
          const long row = first + i * 32 + ctz(left);
          const uint r = uint(indices[row * p.stride_index]) - first_out;
          its_sums[r * matmul_threads] += float(rows[row * p.stride_row + long(column) * p.stride_column]);
        }
      }
    }
  }
  const uint count = min(uint(matmul_scatter_rows), p.count - first_out);
  for (uint r = 0; r < count && column < p.columns; ++r) {
    out[ulong(first_out + r) * p.columns + column] = T(its_sums[r * matmul_threads]);
  }
}

#define INSTANTIATE_LINEAR(dtype, T) \
  template [[host_name("linear_backward_" #dtype)]] [[kernel]] decltype(linear_backward<T>) linear_backward<T>;
LINEAR_BACKWARD_VARIANTS(INSTANTIATE_LINEAR)

#define INSTANTIATE_SCATTER(dtype, T) \
  template [[host_name(               \
      "grouped_matmul_scatter_" #dtype)]] [[kernel]] decltype(grouped_matmul_scatter<T>) grouped_matmul_scatter<T>;
GROUPED_MATMUL_SCATTER_VARIANTS(INSTANTIATE_SCATTER)
