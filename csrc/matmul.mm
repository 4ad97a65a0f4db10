// mpsk::matmul, mpsk::linear and mpsk::gated_linear: checks and products.
#include <ATen/ops/empty.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "matmul_product.h"
#include "runtime/check.h"
#include "runtime/register.h"

namespace mpsk {
namespace {

using optional_tensor = std::optional<at::Tensor>;

// (..., k) as rows of a matrix; what has no leading dimension has one row.
at::Tensor rows_of(const at::Tensor& x) { return x.dim() == 1 ? x.unsqueeze(0) : x; }

std::vector<int64_t> result_sizes(const at::Tensor& x, int64_t features) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = features;
  return sizes;
}

at::Tensor empty(const std::vector<int64_t>& sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::Contiguous));
}

// x and a weight that goes with it.
void check_weight(const Arg& weight, const Arg& x) {
  check_device(weight, x);
  check_same_dtype(weight, x);
  check_dim(weight, 2);
  check_size(weight, 1, x.tensor.sym_size(-1), "to match x.size(-1)");
}

std::vector<c10::SymInt> check_product(const char* op, const at::Tensor& a, const at::Tensor& b) {
  const Arg a_arg{op, "a", a}, b_arg{op, "b", b};
  check_device(a_arg);
  check_device(b_arg, a_arg);
  check_dtype(a_arg);
  check_same_dtype(b_arg, a_arg);
  check_dim_between(a_arg, 1, 64);
  check_dim_between(b_arg, 1, 64);
  check_size(b_arg, b.dim() == 1 ? -1 : -2, a.sym_size(-1), "to match a.size(-1)");
  std::vector<c10::SymInt> sizes;
  for (int64_t i = std::max(a.dim(), b.dim()); i > 2; --i) {
    const c10::SymInt a_size = i <= a.dim() ? a.sym_size(-i) : 1, b_size = i <= b.dim() ? b.sym_size(-i) : 1;
    if (TORCH_GUARD_OR_FALSE(a_size.sym_eq(1))) {
      sizes.push_back(b_size);
    } else if (TORCH_GUARD_OR_FALSE(b_size.sym_eq(1))) {
      sizes.push_back(a_size);
    } else {
      require_value(b_size.sym_eq(a_size), op, "expected b.size(", -i, ") == ", a_size, " or 1 to match a.size(", -i,
                    "), got ", b_size);
      sizes.push_back(a_size);
    }
  }
  if (a.dim() > 1) sizes.push_back(a.sym_size(-2));
  if (b.dim() > 1) sizes.push_back(b.sym_size(-1));
  return sizes;
}

}  // namespace

// Returns the sizes of the product.
std::vector<c10::SymInt> check_matmul(const at::Tensor& a, const at::Tensor& b) {
  return check_product("matmul", a, b);
}

void check_linear(const std::string& op_name, const at::Tensor& x, const at::Tensor& weight,
                  const optional_tensor& bias, std::string_view activation, const optional_tensor& residual) {
  const char* op = op_name.c_str();
  const Arg x_arg{op, "x", x}, weight_arg{op, "weight", weight};
  check_device(x_arg);
  check_dtype(x_arg);
  check_dim_between(x_arg, 1, 64);
  check_weight(weight_arg, x_arg);
  if (bias) {
    const Arg bias_arg{op, "bias", *bias};
    check_device(bias_arg, x_arg);
    check_same_dtype(bias_arg, x_arg);
    check_dim(bias_arg, 1);
    check_size(bias_arg, 0, weight.sym_size(0), "to match weight.size(0)");
  }
  if (residual) {
    const Arg residual_arg{op, "residual", *residual};
    check_device(residual_arg, x_arg);
    check_same_dtype(residual_arg, x_arg);
    check_dim(residual_arg, x.dim());
    for (int64_t i = x.dim(); i > 1; --i) {
      check_size(residual_arg, -i, x.sym_size(-i), c10::str("to match x.size(", -i, ")"));
    }
    check_size(residual_arg, -1, weight.sym_size(0), "to match weight.size(0)");
  }
  check_activation(op, activation);
}

void check_gated_linear(const std::string& op_name, const at::Tensor& x, const at::Tensor& w_gate,
                        const at::Tensor& w_up, std::string_view activation) {
  const char* op = op_name.c_str();
  const Arg x_arg{op, "x", x}, gate_arg{op, "w_gate", w_gate}, up_arg{op, "w_up", w_up};
  check_device(x_arg);
  check_dtype(x_arg);
  check_dim_between(x_arg, 1, 64);
  check_weight(gate_arg, x_arg);
  check_weight(up_arg, x_arg);
  check_size(up_arg, 0, w_gate.sym_size(0), "to match w_gate.size(0)");
  check_activation(op, activation);
}

// a @ b + second_a @ second_b, of matrices.
void check_add_matmuls(const at::Tensor& a, const at::Tensor& b, const at::Tensor& second_a,
                       const at::Tensor& second_b) {
  const char* op = "add_matmuls";
  const Arg a_arg{op, "a", a}, b_arg{op, "b", b}, c_arg{op, "second_a", second_a}, d_arg{op, "second_b", second_b};
  check_device(a_arg);
  check_dtype(a_arg);
  check_dim(a_arg, 2);
  for (const Arg& arg : {b_arg, c_arg, d_arg}) {
    check_device(arg, a_arg);
    check_same_dtype(arg, a_arg);
    check_dim(arg, 2);
  }
  check_size(b_arg, 0, a.sym_size(1), "to match a.size(1)");
  check_size(c_arg, 0, a.sym_size(0), "to match a.size(0)");
  check_size(c_arg, 1, a.sym_size(1), "to match a.size(1)");
  check_size(d_arg, 0, b.sym_size(0), "to match b.size(0)");
  check_size(d_arg, 1, b.sym_size(1), "to match b.size(1)");
}

// a @ b of batches, summed over their last `dims` dimensions but those of the matrices. Returns the sizes.
std::vector<c10::SymInt> check_sum_matmuls(const at::Tensor& a, const at::Tensor& b, int64_t dims) {
  const char* op = "sum_matmuls";
  std::vector<c10::SymInt> sizes = check_product(op, a, b);
  check_dim_between({op, "a", a}, 2, 64);
  check_dim_between({op, "b", b}, 2, 64);
  const auto batch = static_cast<int64_t>(sizes.size()) - 2;
  require_value(dims >= 0 && dims <= batch, op, "expected dims >= 0 and <= ", batch, ", those of the batch, got ",
                dims);
  sizes.erase(sizes.end() - 2 - dims, sizes.end() - 2);
  return sizes;
}

namespace {

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  const std::vector<c10::SymInt> sizes = check_matmul(a, b);
  return launch_product({.op = "matmul",
                         .a = rows_of(a),
                         .b = b.dim() == 1 ? b.unsqueeze(1) : b,
                         .sizes = C10_AS_INTARRAYREF_SLOW(sizes)});
}

at::Tensor launch_linear(const char* op, const at::Tensor& x, const at::Tensor& weight, const optional_tensor& bias,
                         std::string_view activation, const optional_tensor& residual,
                         const at::Tensor& preactivation) {
  return launch_product({.op = op,
                         .a = rows_of(x),
                         .b = weight,
                         .sizes = result_sizes(x, weight.size(0)),
                         .b_transposed = true,
                         .bias = bias.value_or(at::Tensor()),
                         .residual = residual ? rows_of(*residual) : at::Tensor(),
                         .preactivation = preactivation,
                         .activation = check_activation(op, activation)});
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const optional_tensor& bias,
                  std::string_view activation, const optional_tensor& residual) {
  check_linear("linear", x, weight, bias, activation, residual);
  return launch_linear("linear", x, weight, bias, activation, residual, {});
}

// The second result: what the activation was applied to; without one, nothing.
std::tuple<at::Tensor, at::Tensor> linear_saving(const at::Tensor& x, const at::Tensor& weight,
                                                 const optional_tensor& bias, std::string_view activation,
                                                 const optional_tensor& residual) {
  const char* op = "linear_saving";
  check_linear("linear", x, weight, bias, activation, residual);  // the op that the user called
  const bool saves = activation != "none";
  const at::Tensor saved = empty(saves ? result_sizes(x, weight.size(0)) : std::vector<int64_t>{0}, x);
  return {launch_linear(op, x, weight, bias, activation, residual, saves ? saved : at::Tensor()), saved};
}

at::Tensor launch_gated(const char* op, const at::Tensor& x, const at::Tensor& w_gate, const at::Tensor& w_up,
                        std::string_view activation, const at::Tensor& gate, const at::Tensor& up) {
  return launch_product({.op = op,
                         .a = rows_of(x),
                         .b = w_gate,
                         .sizes = result_sizes(x, w_gate.size(0)),
                         .second_b = w_up,
                         .b_transposed = true,
                         .preactivation = gate,
                         .up = up,
                         .activation = check_activation(op, activation)});
}

at::Tensor gated_linear(const at::Tensor& x, const at::Tensor& w_gate, const at::Tensor& w_up,
                        std::string_view activation) {
  check_gated_linear("gated_linear", x, w_gate, w_up, activation);
  return launch_gated("gated_linear", x, w_gate, w_up, activation, {}, {});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_linear_saving(const at::Tensor& x, const at::Tensor& w_gate,
                                                                   const at::Tensor& w_up,
                                                                   std::string_view activation) {
  check_gated_linear("gated_linear", x, w_gate, w_up, activation);
  const std::vector<int64_t> sizes = result_sizes(x, w_gate.size(0));
  const at::Tensor gate = empty(sizes, x), up = empty(sizes, x);
  return {launch_gated("gated_linear_saving", x, w_gate, w_up, activation, gate, up), gate, up};
}

at::Tensor sum_matmuls(const at::Tensor& a, const at::Tensor& b, int64_t dims) {
  const std::vector<c10::SymInt> sizes = check_sum_matmuls(a, b, dims);
  return launch_product({.op = "sum_matmuls", .a = a, .b = b, .sizes = C10_AS_INTARRAYREF_SLOW(sizes), .summed = dims});
}

at::Tensor add_matmuls(const at::Tensor& a, const at::Tensor& b, const at::Tensor& second_a,
                       const at::Tensor& second_b) {
  check_add_matmuls(a, b, second_a, second_b);
  return launch_product({.op = "add_matmuls",
                         .a = a,
                         .b = b,
                         .sizes = {{a.size(0), b.size(1)}},
                         .second_a = second_a,
                         .second_b = second_b});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "matmul(Tensor a, Tensor b) -> Tensor", matmul, Gradient::registered, Autocast::casts);
  define_op(m,
            "linear(Tensor x, Tensor weight, Tensor? bias=None, *, str activation=\"none\", Tensor? residual=None) -> "
            "Tensor",
            linear, Gradient::saving, Autocast::casts);
  define_op(m,
            "linear_saving(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? residual) -> (Tensor, "
            "Tensor)",
            linear_saving, Gradient::registered);
  define_op(m, "gated_linear(Tensor x, Tensor w_gate, Tensor w_up, *, str activation=\"silu\") -> Tensor", gated_linear,
            Gradient::saving, Autocast::casts);
  define_op(m, "gated_linear_saving(Tensor x, Tensor w_gate, Tensor w_up, str activation) -> (Tensor, Tensor, Tensor)",
            gated_linear_saving, Gradient::registered);
  define_op(m, "add_matmuls(Tensor a, Tensor b, Tensor second_a, Tensor second_b) -> Tensor", add_matmuls);
  define_op(m, "sum_matmuls(Tensor a, Tensor b, int dims) -> Tensor", sum_matmuls, Gradient::registered);
}

}  // namespace mpsk
