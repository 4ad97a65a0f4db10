// A matrix product of any kind, on its way to the device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "common/activation_kinds.h"

namespace mpsk {

// out = finish(a @ b), batches broadcast: a is (..., m, k), b (..., k, n). Undefined tensors are not there.
struct matmul_product {
  const char* op;
  at::Tensor a, b;
  at::IntArrayRef sizes;          // of out, with m * n elements for each product of the batch
  at::Tensor second_a = {};       // of the sizes of a: out = finish(a @ b + second_a @ second_b)
  at::Tensor second_b = {};       // without second_a: out = activation(a @ b) * (a @ second_b)
  bool a_transposed = false;      // a and second_a are (..., k, m)
  bool b_transposed = false;      // b and second_b are (..., n, k)
  at::Tensor bias = {};           // (n,)
  at::Tensor residual = {};       // as out
  at::Tensor preactivation = {};  // as out; written
  at::Tensor up = {};             // as out; written; only of a gated pair
  activation_kind activation = activation_none;
  at::Tensor offsets = {};  // (groups,); b is then (groups, k, n) and a (m, k),
  bool grouped_k = false;   // or b is (k, n), a (m, k) and out (groups, m, n)
  at::Tensor indices = {};  // rows of a, or of its transpose where k is grouped
  int64_t summed = 0;       // over the last so many dimensions of the batch, which out does not have
};

// Launches its kernel, or its kernels, whose choice is that of matmul_select.h; none where out has no elements. Returns
// out, contiguous.
at::Tensor launch_product(const matmul_product& product);

// out[i] = the sum over j of partials[j][i]: float32 of `count` times out's elements.
void launch_sum(const char* op, const at::Tensor& partials, const at::Tensor& out);

// An activation's number, by its name.
activation_kind check_activation(const char* op, std::string_view name);

}  // namespace mpsk
