// mpsk::softmax and log_softmax, and their backward ops: any strides, read where they are.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"
#include "runtime/strides.h"
#include "softmax_params.h"
#include "softmax_select.h"

namespace mpsk {
namespace {

using Optional = std::optional<at::Tensor>;
constexpr int64_t simd_width = 32;
constexpr int64_t threads_per_threadgroup = 256;  // what rows of fewer threads are gathered to

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The strides of `tensor` as a view of `sizes` by broadcasting.
std::vector<int64_t> broadcast_strides(const at::Tensor& tensor, at::IntArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size(), 0);
  for (int64_t d = 1; d <= tensor.dim(); ++d) {
    if (tensor.size(-d) != 1) strides[sizes.size() - static_cast<size_t>(d)] = tensor.stride(-d);
  }
  return strides;
}

// Everything of a launch but its buffers. `operands` are those of softmax_operand; null ones have stride 0. All are
// read in packs where they can be, but a mask.
struct Plan {
  softmax_params params;
  std::string kernel;
  bool packs;
  Size threadgroups, threads;
};

Plan plan(const char* op, const char* stem, at::IntArrayRef sizes, const std::vector<const at::Tensor*>& operands,
          bool masked, double scale, std::optional<double> soft_cap) {
  const at::Tensor& like = *operands[0];
  const int64_t columns = sizes.back(), rows = c10::multiply_integers(sizes.begin(), sizes.end() - 1);
  const softmax_choice& choice = choose_softmax(device().family, columns);
  const int64_t pack = 16 / like.element_size(), kept = choice.columns_per_thread ? choice.columns_per_thread : pack;
  const int64_t simdgroups = std::min<int64_t>(ceil_div(columns, kept * simd_width), softmax_row_threads / simd_width);
  const int64_t rows_per_threadgroup =
      choice.row ? std::clamp<int64_t>(threads_per_threadgroup / (simdgroups * simd_width), 1, rows) : 1;
  Plan result{.params = {.strides = {},
                         .column_strides = {},
                         .sizes = {},
                         .dims = 0,
                         .rows = narrow<uint32_t>(rows, op, "x.numel() / x.size(-1)"),
                         .columns = static_cast<uint32_t>(narrow<int32_t>(columns, op, "x.size(-1)")),
                         .queries = sizes.size() > 1 ? static_cast<uint32_t>(sizes[sizes.size() - 2]) : 1,
                         .simdgroups_per_row = static_cast<uint32_t>(simdgroups),
                         .rows_per_threadgroup = static_cast<uint32_t>(rows_per_threadgroup),
                         .scale = static_cast<float>(scale),
                         .soft_cap = static_cast<float>(soft_cap.value_or(0.0))},
              .kernel = c10::str(stem, choice.row ? "row_" : "loop_", dtype_suffix(like)),
              .packs = columns % pack == 0,
              .threadgroups = {},
              .threads = {.x = static_cast<size_t>(simdgroups * simd_width * rows_per_threadgroup)}};
  if (choice.row) result.kernel += c10::str("_c", kept);
  std::vector<std::vector<int64_t>> strides;
  for (size_t o = 0; o < softmax_operands; ++o) {
    const at::Tensor* tensor = o < operands.size() ? operands[o] : nullptr;
    strides.push_back(tensor ? broadcast_strides(*tensor, sizes) : std::vector<int64_t>(sizes.size(), 0));
    result.params.column_strides[o] = strides.back().back();
    strides.back().pop_back();
  }
  const Dims dims = merged_dims(sizes.slice(0, sizes.size() - 1), {strides[0], strides[1], strides[2]});
  require_supported(dims.sizes.size() <= softmax_max_dims, op, "expected at most ", +softmax_max_dims,
                    " leading dimensions that no single stride describes, got ", dims.sizes.size());
  result.params.dims = static_cast<uint32_t>(dims.sizes.size());
  for (size_t d = 0; d < dims.sizes.size(); ++d) result.params.sizes[d] = static_cast<uint32_t>(dims.sizes[d]);
  for (size_t o = 0; o < softmax_operands; ++o) std::ranges::copy(dims.strides[o], result.params.strides[o]);
  for (size_t o = 0; o < operands.size(); ++o) {
    if (!operands[o] || (masked && o == softmax_operand_mask)) continue;
    const bool rows_aligned =
        rows == 1 || std::ranges::all_of(dims.strides[o], [&](int64_t s) { return s % pack == 0; });
    result.packs = result.packs && rows_aligned && result.params.column_strides[o] == 1 &&
                   operands[o]->storage_offset() % pack == 0;
  }
  const size_t groups = static_cast<size_t>(ceil_div(rows, rows_per_threadgroup));
  const size_t width = std::min<size_t>(groups, softmax_grid_width);
  result.threadgroups = {.x = width, .y = (groups + width - 1) / width};
  return result;
}

void check_scores(const Arg& x, double scale, std::optional<double> soft_cap) {
  check_device(x);
  check_dtype(x);
  check_dim_between(x, 1, 64);
  require_value(finite_f32(scale), x.op, "expected a scale that is finite in float32, got ", scale);
  require_value(!soft_cap || (finite_f32(*soft_cap) && static_cast<float>(*soft_cap) > 0), x.op,
                "expected a soft_cap > 0 that is finite in float32, got ", soft_cap.value_or(0));
}

}  // namespace

void check_softmax(std::string_view op_name, const at::Tensor& x, const Optional& mask, double scale, bool is_causal,
                   std::optional<double> soft_cap) {
  const std::string name(op_name);
  const char* op = name.c_str();
  const Arg x_arg{op, "x", x};
  check_scores(x_arg, scale, soft_cap);
  require_value(!is_causal || x.dim() >= 2, op, "expected x.dim() >= 2 where is_causal, got ", x.dim());
  if (!mask) return;
  const Arg mask_arg{op, "mask", *mask};
  check_device(mask_arg, x_arg);
  const at::ScalarType type = mask->scalar_type();
  require_type(type == at::kBool || type == at::kFloat || type == x.scalar_type(), op,
               "expected mask of dtype bool, float32 or that of x, ", dtype_name(x), ", got ", dtype_name(*mask));
  check_dim_between(mask_arg, 0, x.dim());
  for (int64_t d = 1; d <= mask->dim(); ++d) {
    if (TORCH_GUARD_OR_FALSE(mask->sym_size(-d).sym_eq(1))) continue;
    check_size(mask_arg, -d, x.sym_size(-d), c10::str("or 1 to match x.size(", -d, ")"));
  }
}

void check_softmax_backward(std::string_view op_name, const at::Tensor& grad, const at::Tensor& out, const Optional& x,
                            double scale, std::optional<double> soft_cap) {
  const std::string name(op_name);
  const char* op = name.c_str();
  const Arg out_arg{op, "out", out};
  check_scores(out_arg, scale, soft_cap);
  require_value(x.has_value() == soft_cap.has_value(), op, "expected both x and soft_cap, or neither");
  const at::Tensor* others[] = {&grad, x ? &*x : nullptr};
  const char* names[] = {"grad", "x"};
  for (size_t i = 0; i < 2; ++i) {
    if (!others[i]) continue;
    const Arg arg{op, names[i], *others[i]};
    check_device(arg, out_arg);
    check_same_dtype(arg, out_arg);
    check_dim(arg, out.dim());
    for (int64_t d = 0; d < out.dim(); ++d) check_size(arg, d, out.sym_size(d), "to match out");
  }
}

namespace {

at::Tensor forward(const char* op, bool logs, const at::Tensor& x, const Optional& mask, double scale, bool is_causal,
                   std::optional<double> soft_cap) {
  check_softmax(op, x, mask, scale, is_causal, soft_cap);
  if (x.numel() == 0) return at::empty(x.sizes(), x.options());
  const Plan launch_plan =
      plan(op, "softmax_", x.sizes(), {&x, mask ? &*mask : nullptr}, mask.has_value(), scale, soft_cap);
  const bool mask_bool = mask && mask->scalar_type() == at::kBool;
  const bool mask_f32 = mask && mask->scalar_type() == at::kFloat && x.scalar_type() != at::kFloat;
  auto kernel = pipeline(launch_plan.kernel, {{softmax_constant_log, "log", logs},
                                              {softmax_constant_mask, "mask", mask && !mask_bool && !mask_f32},
                                              {softmax_constant_mask_f32, "mask_f32", mask_f32},
                                              {softmax_constant_mask_bool, "mask_bool", mask_bool},
                                              {softmax_constant_causal, "causal", is_causal},
                                              {softmax_constant_soft_cap, "soft_cap", soft_cap.has_value()},
                                              {softmax_constant_packs, "packs", launch_plan.packs}});
  at::Tensor out = at::empty(x.sizes(), x.options());
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(softmax_buffer_x, x);
    if (mask) {
      encoder.tensor(mask_bool  ? softmax_buffer_mask_bool
                     : mask_f32 ? softmax_buffer_mask_f32
                                : softmax_buffer_mask,
                     *mask);
    }
    encoder.tensor(softmax_buffer_out, out);
    encoder.params(softmax_buffer_params, launch_plan.params);
    encoder.dispatch(launch_plan.threadgroups, launch_plan.threads);
  });
  return out;
}

at::Tensor backward(const char* op, bool logs, const at::Tensor& grad, const at::Tensor& out, const Optional& x,
                    double scale, std::optional<double> soft_cap) {
  check_softmax_backward(op, grad, out, x, scale, soft_cap);
  at::Tensor result = at::empty(out.sizes(), out.options());
  if (result.numel() == 0) return result;
  const Plan launch_plan =
      plan(op, "softmax_backward_", out.sizes(), {&out, x ? &*x : nullptr, &grad}, false, scale, soft_cap);
  auto kernel = pipeline(launch_plan.kernel, {{softmax_constant_log, "log", logs},
                                              {softmax_constant_soft_cap, "soft_cap", soft_cap.has_value()},
                                              {softmax_constant_packs, "packs", launch_plan.packs}});
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    if (x) encoder.tensor(softmax_buffer_x, *x);
    encoder.tensor(softmax_buffer_out, out);
    encoder.tensor(softmax_buffer_gradient, grad);
    encoder.tensor(softmax_buffer_x_gradient, result);
    encoder.params(softmax_buffer_params, launch_plan.params);
    encoder.dispatch(launch_plan.threadgroups, launch_plan.threads);
  });
  return result;
}

at::Tensor softmax(const at::Tensor& x, const Optional& mask, double scale, bool is_causal,
                   std::optional<double> soft_cap) {
  return forward("softmax", false, x, mask, scale, is_causal, soft_cap);
}
at::Tensor log_softmax(const at::Tensor& x, const Optional& mask, double scale, bool is_causal,
                       std::optional<double> soft_cap) {
  return forward("log_softmax", true, x, mask, scale, is_causal, soft_cap);
}
at::Tensor softmax_backward(const at::Tensor& grad, const at::Tensor& out, const Optional& x, double scale,
                            std::optional<double> soft_cap) {
  return backward("softmax_backward", false, grad, out, x, scale, soft_cap);
}
at::Tensor log_softmax_backward(const at::Tensor& grad, const at::Tensor& out, const Optional& x, double scale,
                                std::optional<double> soft_cap) {
  return backward("log_softmax_backward", true, grad, out, x, scale, soft_cap);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  const char* options = "Tensor? mask=None, *, float scale=1.0, bool is_causal=False, float? soft_cap=None";
  define_op(m, c10::str("softmax(Tensor x, ", options, ") -> Tensor").c_str(), softmax, Gradient::registered);
  define_op(m, c10::str("log_softmax(Tensor x, ", options, ") -> Tensor").c_str(), log_softmax, Gradient::registered);
  const char* backward_options = "Tensor grad, Tensor out, Tensor? x, *, float scale=1.0, float? soft_cap=None";
  define_op(m, c10::str("softmax_backward(", backward_options, ") -> Tensor").c_str(), softmax_backward);
  define_op(m, c10::str("log_softmax_backward(", backward_options, ") -> Tensor").c_str(), log_softmax_backward);
}

}  // namespace mpsk
