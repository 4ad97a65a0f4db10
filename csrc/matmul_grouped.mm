// mpsk::grouped_matmul and its backward pass: checks and products.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <limits>
#include <optional>

#include "matmul_params.h"
#include "matmul_product.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

using optional_tensor = std::optional<at::Tensor>;

void check_int32_vector(const Arg& arg, const Arg& like) {
  check_device(arg, like);
  require_type(arg.tensor.scalar_type() == at::kInt, arg.op, "expected ", arg.name, " of dtype int32, got ",
               dtype_name(arg.tensor), "; pass ", arg.name, ".to(torch.int32)");
  check_dim(arg, 1);
}

// Rows are counted in 32 bits.
void check_rows(const Arg& arg) {
  require_value(arg.tensor.sym_size(0).sym_le(std::numeric_limits<int32_t>::max()), arg.op, "expected ", arg.name,
                ".size(0) <= ", std::numeric_limits<int32_t>::max(), ", got ", arg.tensor.sym_size(0));
}

// Rows of x, or those that indices name, and the offsets that divide them.
void check_groups(const Arg& x, const at::Tensor& offsets, const optional_tensor& indices) {
  check_device(x);
  check_dtype(x);
  check_dim(x, 2);
  check_rows(x);
  check_int32_vector({x.op, "offsets", offsets}, x);
  if (indices) {
    const Arg indices_arg{x.op, "indices", *indices};
    check_int32_vector(indices_arg, x);
    check_rows(indices_arg);
  }
}

at::Tensor contiguous(const optional_tensor& tensor) { return tensor ? tensor->contiguous() : at::Tensor(); }

}  // namespace

void check_grouped_matmul(const at::Tensor& x, const at::Tensor& w, const at::Tensor& offsets,
                          const optional_tensor& indices) {
  const char* op = "grouped_matmul";
  const Arg x_arg{op, "x", x}, w_arg{op, "w", w};
  check_groups(x_arg, offsets, indices);
  check_device(w_arg, x_arg);
  check_same_dtype(w_arg, x_arg);
  check_dim(w_arg, 3);
  check_size(w_arg, 1, x.sym_size(1), "to match x.size(1)");
  check_size(w_arg, 0, offsets.sym_size(0), "to match offsets.size(0)");
}

void check_grouped_matmul_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                   const optional_tensor& indices) {
  const char* op = "grouped_matmul_backward";
  const Arg grad_arg{op, "grad", grad}, x_arg{op, "x", x};
  check_groups(x_arg, offsets, indices);
  check_device(grad_arg, x_arg);
  check_same_dtype(grad_arg, x_arg);
  check_dim(grad_arg, 2);
  check_size(grad_arg, 0, indices ? indices->sym_size(0) : x.sym_size(0),
             indices ? "to match indices.size(0)" : "to match x.size(0)");
}

void check_grouped_matmul_scatter(const at::Tensor& rows, const at::Tensor& indices, const c10::SymInt& count) {
  const char* op = "grouped_matmul_scatter";
  const Arg rows_arg{op, "rows", rows}, indices_arg{op, "indices", indices};
  check_device(rows_arg);
  check_dtype(rows_arg);
  check_dim(rows_arg, 2);
  check_rows(rows_arg);
  check_int32_vector(indices_arg, rows_arg);
  check_size(indices_arg, 0, rows.sym_size(0), "to match rows.size(0)");
  require_value(count.sym_ge(0), op, "expected count >= 0, got ", count);
}

namespace {

at::Tensor grouped_matmul(const at::Tensor& x, const at::Tensor& w, const at::Tensor& offsets,
                          const optional_tensor& indices) {
  check_grouped_matmul(x, w, offsets, indices);
  const int64_t rows = (indices ? *indices : x).size(0);
  return launch_product({.op = "grouped_matmul",
                         .a = x,
                         .b = w,
                         .sizes = {{rows, w.size(2)}},
                         .offsets = offsets.contiguous(),
                         .indices = contiguous(indices)});
}

at::Tensor grouped_matmul_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                   const optional_tensor& indices) {
  check_grouped_matmul_backward(grad, x, offsets, indices);
  return launch_product({.op = "grouped_matmul_backward",
                         .a = x,
                         .b = grad,
                         .sizes = {{offsets.size(0), x.size(1), grad.size(1)}},
                         .a_transposed = true,
                         .offsets = offsets.contiguous(),
                         .grouped_k = true,
                         .indices = contiguous(indices)});
}

at::Tensor grouped_matmul_scatter(const at::Tensor& rows, const at::Tensor& indices, int64_t count) {
  const char* op = "grouped_matmul_scatter";
  check_grouped_matmul_scatter(rows, indices, count);
  at::Tensor out = at::empty({count, rows.size(1)}, rows.options());
  if (out.numel() == 0) return out;
  const grouped_matmul_scatter_params params{.columns = static_cast<uint64_t>(rows.size(1)),
                                             .stride_row = rows.stride(0),
                                             .stride_column = rows.stride(1),
                                             .stride_index = indices.stride(0),
                                             .rows = narrow<uint32_t>(rows.size(0), op, "rows.size(0)"),
                                             .count = narrow<uint32_t>(count, op, "count")};
  const auto kernel = pipeline(c10::str("grouped_matmul_scatter_", dtype_suffix(rows)));
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(grouped_matmul_scatter_buffer_rows, rows);
    encoder.tensor(grouped_matmul_scatter_buffer_indices, indices);
    encoder.tensor(grouped_matmul_scatter_buffer_out, out);
    encoder.params(grouped_matmul_scatter_buffer_params, params);
    encoder.dispatch({.x = static_cast<size_t>((rows.size(1) + matmul_threads - 1) / matmul_threads),
                      .y = (params.count - 1) / matmul_scatter_rows + size_t{1}},
                     {.x = matmul_threads});
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "grouped_matmul(Tensor x, Tensor w, Tensor offsets, Tensor? indices=None) -> Tensor", grouped_matmul,
            Gradient::registered, Autocast::casts);
  define_op(m, "grouped_matmul_backward(Tensor grad, Tensor x, Tensor offsets, Tensor? indices) -> Tensor",
            grouped_matmul_backward);
  define_op(m, "grouped_matmul_scatter(Tensor rows, Tensor indices, SymInt count) -> Tensor", grouped_matmul_scatter);
}

}  // namespace mpsk
