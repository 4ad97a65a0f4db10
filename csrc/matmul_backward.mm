// The parts of the matmul family's backward passes that are no matrix products: mpsk::linear_backward and
// mpsk::gated_linear_backward.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>

#include "activation_gated.h"
#include "matmul_params.h"
#include "matmul_product.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"
#include "runtime/strides.h"

namespace mpsk {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Chunks of rows whose sums are added up afterwards: enough of them to fill a chip, each of rows enough that their sums
// are few beside the rows. Unmeasured.
constexpr int64_t rows_per_chunk = 128;

void check_same_sizes(const Arg& arg, const Arg& like) {
  check_device(arg, like);
  check_same_dtype(arg, like);
  check_dim(arg, like.tensor.dim());
  for (int64_t i = like.tensor.dim(); i > 0; --i) {
    check_size(arg, -i, like.tensor.sym_size(-i), c10::str("to match ", like.name, ".size(", -i, ")"));
  }
}

}  // namespace

void check_linear_backward(const at::Tensor& grad, const std::optional<at::Tensor>& preactivation,
                           std::string_view activation, bool) {
  const char* op = "linear_backward";
  const Arg grad_arg{op, "grad", grad};
  check_device(grad_arg);
  check_dtype(grad_arg);
  check_dim_between(grad_arg, 1, 64);
  if (preactivation) check_same_sizes({op, "preactivation", *preactivation}, grad_arg);
  check_activation(op, activation);
  require_value(preactivation.has_value() == (activation != "none"), op, "expected a preactivation ",
                preactivation ? "only " : "", "with an activation, got activation ", activation);
}

void check_gated_linear_backward(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& up,
                                 std::string_view activation) {
  const char* op = "gated_linear_backward";
  const Arg grad_arg{op, "grad", grad}, gate_arg{op, "gate", gate}, up_arg{op, "up", up};
  check_device(grad_arg);
  check_dtype(grad_arg);
  check_same_sizes(gate_arg, grad_arg);
  check_same_sizes(up_arg, grad_arg);
  check_activation(op, activation);
}

namespace {

std::tuple<at::Tensor, at::Tensor> linear_backward(const at::Tensor& grad,
                                                   const std::optional<at::Tensor>& preactivation_arg,
                                                   std::string_view activation, bool bias) {
  const char* op = "linear_backward";
  check_linear_backward(grad, preactivation_arg, activation, bias);
  const at::IntArrayRef leading = grad.sizes().slice(0, grad.dim() - 1);
  const int64_t rows = c10::multiply_integers(leading), columns = grad.size(-1),
                chunks = std::max<int64_t>(1, ceil_div(rows, rows_per_chunk));
  const auto options = grad.options().memory_format(at::MemoryFormat::Contiguous);
  const bool activated = preactivation_arg.has_value();
  at::Tensor out = at::empty(activated ? grad.sizes() : at::IntArrayRef{0}, options);
  at::Tensor sum = at::empty({bias ? columns : 0}, options);
  if (columns == 0 || (rows == 0 && !bias) || (!activated && !bias)) return {out, sum};
  const at::Tensor preactivation = activated ? *preactivation_arg : at::Tensor();
  at::Tensor partials = at::empty({bias ? chunks * columns : 0}, options.dtype(at::kFloat));
  const at::IntArrayRef grad_strides = grad.strides(),
                        preactivation_strides = activated ? preactivation.strides() : grad_strides;
  const Dims dims =
      merged_dims(rows == 0 ? at::IntArrayRef() : leading,
                  {grad_strides.slice(0, leading.size()), preactivation_strides.slice(0, leading.size())});
  require_supported(dims.sizes.size() <= matmul_max_batch_dims, op, "expected at most ", +matmul_max_batch_dims,
                    " leading dimensions that no single stride describes, got ", dims.sizes.size(),
                    "; pass contiguous operands");
  linear_backward_params params{.rows = static_cast<uint64_t>(rows),
                                .columns = static_cast<uint64_t>(columns),
                                .grad_stride_column = grad_strides.back(),
                                .preactivation_stride_column = preactivation_strides.back(),
                                .sizes = {},
                                .grad_strides = {},
                                .preactivation_strides = {},
                                .dims = static_cast<uint32_t>(dims.sizes.size()),
                                .rows_per_chunk = static_cast<uint32_t>(rows_per_chunk),
                                .activation = check_activation(op, activation),
                                .pad = 0};
  std::ranges::copy(dims.sizes, params.sizes);
  std::ranges::copy(dims.strides[0], params.grad_strides);
  std::ranges::copy(dims.strides[1], params.preactivation_strides);
  const auto kernel = pipeline(
      c10::str("linear_backward_", dtype_suffix(grad)),
      {{linear_backward_constant_activation, "activation", activated}, {linear_backward_constant_bias, "bias", bias}});
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(linear_backward_buffer_grad, grad);
    if (activated) {
      encoder.tensor(linear_backward_buffer_preactivation, preactivation);
      encoder.tensor(linear_backward_buffer_out, out);
    }
    if (bias) encoder.tensor(linear_backward_buffer_sums, partials);
    encoder.params(linear_backward_buffer_params, params);
    encoder.dispatch({.x = static_cast<size_t>(ceil_div(columns, 32)), .y = static_cast<size_t>(chunks)},
                     {.x = 32, .y = matmul_backward_simdgroups});
  });
  if (bias) launch_sum(op, partials, sum);
  return {out, sum};
}

std::tuple<at::Tensor, at::Tensor> gated_linear_backward(const at::Tensor& grad, const at::Tensor& gate,
                                                         const at::Tensor& up, std::string_view activation) {
  const char* op = "gated_linear_backward";
  check_gated_linear_backward(grad, gate, up, activation);
  return launch_gated_backward(op, check_activation(op, activation), grad, gate, up);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "linear_backward(Tensor grad, Tensor? preactivation, *, str activation, bool bias) -> (Tensor, Tensor)",
            linear_backward);
  define_op(m, "gated_linear_backward(Tensor grad, Tensor gate, Tensor up, *, str activation) -> (Tensor, Tensor)",
            gated_linear_backward);
}

}  // namespace mpsk
