// mpsk::rms_norm: any number of leading dimensions with any strides; the kernel reads rows where they are.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "norm_params.h"
#include "norm_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

constexpr int64_t simd_width = 32;
constexpr int64_t threads_per_threadgroup = 256;  // what rows of fewer threads are gathered to

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The leading dimensions of x, innermost first, neighbours that one stride describes merged.
void set_rows(rms_norm_params& params, const at::Tensor& x) {
  uint32_t dims = 0;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    const int64_t size = x.size(d), stride = x.stride(d);
    if (size == 1) continue;
    if (dims > 0 && stride == params.strides[dims - 1] * params.sizes[dims - 1]) {
      params.sizes[dims - 1] *= static_cast<uint32_t>(size);  // at most `rows`, which fits
    } else {
      params.sizes[dims] = static_cast<uint32_t>(size);
      params.strides[dims++] = stride;
    }
  }
  params.dims = std::max(dims, 1u);  // a single row has stride 0
}

// Whether the four columns from any multiple of four on can be moved as one.
bool in_vectors(const at::Tensor& tensor) {
  if (tensor.stride(-1) != 1 || tensor.size(-1) % 4 != 0 || tensor.storage_offset() % 4 != 0) return false;
  for (int64_t d = 0; d < tensor.dim() - 1; ++d) {
    if (tensor.size(d) != 1 && tensor.stride(d) % 4 != 0) return false;
  }
  return true;
}

}  // namespace

void check_rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps) {
  const char* op = "rms_norm";
  const Arg x_arg{op, "x", x};
  check_device(x_arg);
  check_dtype(x_arg);
  check_dim_between(x_arg, 1, norm_max_dims + 1);
  if (weight) {
    const Arg weight_arg{op, "weight", *weight};
    check_device(weight_arg, x_arg);
    require_type(weight->scalar_type() == x.scalar_type() || weight->scalar_type() == at::kFloat, op,
                 "expected weight of dtype ", dtype_name(x), " to match x, or float32, got ", dtype_name(*weight));
    check_dim(weight_arg, 1);
    check_size(weight_arg, -1, x.sym_size(-1), "to match x.size(-1)");
  }
  require_value(finite_f32(eps) && eps >= 0, op, "expected an eps >= 0 that is finite in float32, got ", eps);
}

at::Tensor rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps) {
  const char* op = "rms_norm";
  check_rms_norm(x, weight, eps);
  auto empty_like_x = [&] { return at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous)); };
  if (x.numel() == 0) return empty_like_x();

  const int64_t columns = x.size(-1);
  const int64_t rows = x.numel() / columns;
  const rms_norm_choice& choice = choose_rms_norm(device().family, columns);
  const int64_t simdgroups_per_row =
      std::min<int64_t>(ceil_div(columns, choice.columns_per_thread * simd_width), norm_row_threads / simd_width);
  const int64_t threads_per_row = simdgroups_per_row * simd_width;
  const int64_t rows_per_threadgroup = std::clamp<int64_t>(threads_per_threadgroup / threads_per_row, 1, rows);
  rms_norm_params params{
      .strides = {},
      .column_stride = x.stride(-1),
      .weight_stride = weight ? weight->stride(0) : 0,
      .sizes = {},
      .dims = 0,
      .rows = narrow<uint32_t>(rows, op, "x.numel() / x.size(-1)"),
      .columns = static_cast<uint32_t>(narrow<int32_t>(columns, op, "x.size(-1)")),
      .simdgroups_per_row = static_cast<uint32_t>(simdgroups_per_row),
      .rows_per_threadgroup = static_cast<uint32_t>(rows_per_threadgroup),
      .eps = std::max(static_cast<float>(eps), std::numeric_limits<float>::min()),
  };
  set_rows(params, x);

  const bool weight_f32 = weight && weight->scalar_type() != x.scalar_type();
  auto kernel = pipeline(c10::str(choice.kernel, "_", dtype_suffix(x), choice.tile),
                         {{norm_constant_weight, "weight", weight && !weight_f32},
                          {norm_constant_weight_f32, "weight_f32", weight_f32},
                          {norm_constant_vectors, "vectors", in_vectors(x) && (!weight || in_vectors(*weight))}});
  at::Tensor out = empty_like_x();
  const size_t groups = static_cast<size_t>(ceil_div(rows, rows_per_threadgroup));
  const size_t width = std::min<size_t>(groups, norm_grid_width);
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(norm_buffer_x, x);
    if (weight) encoder.tensor(weight_f32 ? norm_buffer_weight_f32 : norm_buffer_weight, *weight);
    encoder.tensor(norm_buffer_out, out);
    encoder.params(norm_buffer_params, params);
    encoder.dispatch({.x = width, .y = (groups + width - 1) / width},
                     {.x = static_cast<size_t>(threads_per_row * rows_per_threadgroup)});
  });
  return out;
}

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor", rms_norm);
}

}  // namespace mpsk
