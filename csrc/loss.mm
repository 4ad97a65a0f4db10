// mpsk::cross_entropy and linear_cross_entropy, and their backward ops.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/StringUtil.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "loss_params.h"
#include "loss_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"
#include "runtime/strides.h"

namespace mpsk {

namespace {

// What the ops have in common.
struct Options {
  int64_t ignore_index;
  double label_smoothing, z_loss;
  std::optional<double> soft_cap;
  std::string_view reduction;
};

void check_options(const char* op, const Options& options) {
  require_value(options.label_smoothing >= 0 && options.label_smoothing <= 1, op,
                "expected label_smoothing between 0 and 1, got ", options.label_smoothing);
  require_value(finite_f32(options.z_loss) && options.z_loss >= 0, op,
                "expected a z_loss >= 0 that is finite in float32, got ", options.z_loss);
  require_value(!options.soft_cap || (finite_f32(*options.soft_cap) && static_cast<float>(*options.soft_cap) > 0), op,
                "expected a soft_cap > 0 that is finite in float32, got ", options.soft_cap.value_or(0));
  require_value(options.reduction == "mean" || options.reduction == "sum" || options.reduction == "none", op,
                "expected reduction to be \"mean\", \"sum\" or \"none\", got \"", options.reduction, "\"");
}

// One target for each row of `rows`, of which the last dimension is left out.
void check_targets(const Arg& targets, const Arg& rows) {
  check_device(targets, rows);
  const at::ScalarType type = targets.tensor.scalar_type();
  require_type(type == at::kInt || type == at::kLong, targets.op, "expected targets of dtype int32 or int64, got ",
               dtype_name(targets.tensor));
  check_dim(targets, rows.tensor.dim() - 1);
  for (int64_t d = 0; d < targets.tensor.dim(); ++d) {
    check_size(targets, d, rows.tensor.sym_size(d), c10::str("to match ", rows.name));
  }
}

void check_float32(const Arg& arg, const Arg& like) {
  check_device(arg, like);
  require_type(arg.tensor.scalar_type() == at::kFloat, arg.op, "expected ", arg.name, " of dtype float32, got ",
               dtype_name(arg.tensor));
}

// What a backward op takes from the forward one, and the gradient of its loss.
void check_saved(const Arg& grad, const Arg& lse, const Arg& scale, const at::Tensor& targets, const Arg& like,
                 const Options& options) {
  for (const Arg& arg : {grad, lse, scale}) check_float32(arg, like);
  const bool none = options.reduction == "none";
  check_dim(grad, none ? targets.dim() : 0);
  check_dim(lse, targets.dim());
  for (int64_t d = 0; d < targets.dim(); ++d) {
    if (none) check_size(grad, d, targets.sym_size(d), "to match targets");
    check_size(lse, d, targets.sym_size(d), "to match targets");
  }
  check_dim(scale, 1);
  check_size(scale, 0, options.reduction == "mean" ? 1 : 0, "for this reduction");
  require_value(lse.tensor.is_contiguous() || lse.tensor.is_meta(), lse.op, "expected a contiguous lse");
}

// A view, made without the dispatcher: it computes nothing, and a kernel reads it at once.
at::Tensor view(const at::Tensor& t, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset = 0) {
  at::Tensor result =
      at::detail::make_tensor<at::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(t.storage()), t.key_set(), t.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, t.storage_offset() + offset);
  return result;
}

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(C10_STRINGIZE(MPSK_NAMESPACE) "::matmul", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  return op.call(a, b);
}

at::Tensor transposed(const at::Tensor& t) { return view(t, {t.size(1), t.size(0)}, {t.stride(1), t.stride(0)}); }
at::Tensor rows_of(const at::Tensor& t, int64_t first, int64_t count) {
  std::vector<int64_t> sizes = t.sizes().vec();
  sizes[0] = count;
  return view(t, sizes, t.strides(), first * t.stride(0));
}

Size grid(size_t groups) {
  const size_t width = std::min<size_t>(groups, loss_grid_width);
  return {.x = width, .y = (groups + width - 1) / width};
}

// One launch of cross_entropy_rows. What is undefined has no part in it.
struct Rows {
  at::Tensor logits = {}, targets = {};
  at::Tensor loss = {}, lse = {};
  at::Tensor scale = {}, upstream = {};
  at::Tensor gradient = {};  // contiguous; the logits themselves, to take their place
  int64_t first_class = 0, all_classes = 0;
};

loss_params params_of(const char* op, const Rows& rows, const Options& options) {
  const at::Tensor& logits = rows.logits;
  loss_params params{
      .strides = {},
      .class_stride = logits.defined() ? logits.stride(-1) : 0,
      .ignore_index = options.ignore_index,
      .sizes = {},
      .dims = 1,
      .rows = narrow<uint32_t>(rows.targets.numel(), op, "targets.numel()"),
      .classes = logits.defined() ? static_cast<uint32_t>(narrow<int32_t>(logits.size(-1), op, "classes")) : 0,
      .first_class = static_cast<uint32_t>(rows.first_class),
      .all_classes = static_cast<uint32_t>(narrow<int32_t>(rows.all_classes, op, "classes")),
      .simdgroups_per_row = 0,
      .rows_per_threadgroup = 0,
      .label_smoothing = static_cast<float>(options.label_smoothing),
      .z_loss = static_cast<float>(options.z_loss),
      .soft_cap = static_cast<float>(options.soft_cap.value_or(0.0))};
  if (params.rows == 0) return params;
  const at::IntArrayRef sizes = rows.targets.sizes();
  const std::vector<int64_t> nothing(sizes.size(), 0);
  const at::IntArrayRef of_logits = logits.defined() ? logits.strides().slice(0, sizes.size()) : nothing;
  const at::IntArrayRef of_upstream =
      rows.upstream.defined() && rows.upstream.dim() > 0 ? rows.upstream.strides() : nothing;
  const Dims dims = merged_dims(sizes, {of_logits, rows.targets.strides(), of_upstream});
  require_supported(dims.sizes.size() <= loss_max_dims, op, "expected at most ", +loss_max_dims,
                    " leading dimensions that no single stride describes, got ", dims.sizes.size());
  params.dims = static_cast<uint32_t>(dims.sizes.size());
  for (size_t d = 0; d < dims.sizes.size(); ++d) params.sizes[d] = static_cast<uint32_t>(dims.sizes[d]);
  for (size_t o = 0; o < loss_operands; ++o) std::ranges::copy(dims.strides[o], params.strides[o]);
  return params;
}

bool is_i64(const at::Tensor& targets) { return targets.scalar_type() == at::kLong; }

void launch_rows(const char* op, const Rows& rows, const Options& options) {
  if (rows.targets.numel() == 0 || rows.logits.size(-1) == 0) return;
  loss_params params = params_of(op, rows, options);
  const at::Tensor& logits = rows.logits;
  const int64_t pack = 16 / logits.element_size();
  bool packs = logits.stride(-1) == 1 && logits.size(-1) % pack == 0 && logits.storage_offset() % pack == 0;
  for (uint32_t d = 0; d < params.dims && params.rows > 1; ++d) {
    packs = packs && params.strides[loss_operand_logits][d] % pack == 0;
  }
  // A thread has 16 bytes of classes under way at once; short rows are gathered to threadgroups of 256 threads.
  const int64_t wanted = (logits.size(-1) + 32 * pack - 1) / (32 * pack);
  const int64_t simdgroups = std::min<int64_t>(wanted, loss_row_threads / 32);
  const int64_t together = std::clamp<int64_t>(8 / simdgroups, 1, params.rows);
  params.simdgroups_per_row = static_cast<uint32_t>(simdgroups);
  params.rows_per_threadgroup = static_cast<uint32_t>(together);
  const bool in_place = rows.gradient.defined() && rows.gradient.is_same(logits);
  const bool held =
      rows.loss.defined() && rows.gradient.defined() && logits.size(-1) <= 32 * simdgroups * pack * loss_held_chunks;
  auto kernel = pipeline(c10::str("cross_entropy_rows_", dtype_suffix(logits)),
                         {{loss_constant_targets_i64, "targets_i64", is_i64(rows.targets)},
                          {loss_constant_loss, "loss", rows.loss.defined()},
                          {loss_constant_gradient, "gradient", rows.gradient.defined()},
                          {loss_constant_in_place, "in_place", in_place},
                          {loss_constant_scale, "scale", rows.scale.defined()},
                          {loss_constant_upstream, "upstream", rows.upstream.defined()},
                          {loss_constant_soft_cap, "soft_cap", options.soft_cap.has_value()},
                          {loss_constant_packs, "packs", packs},
                          {loss_constant_held, "held", held}});
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    if (!in_place) encoder.tensor(loss_buffer_logits, logits);
    encoder.tensor(is_i64(rows.targets) ? loss_buffer_targets_i64 : loss_buffer_targets_i32, rows.targets);
    if (rows.loss.defined()) encoder.tensor(loss_buffer_loss, rows.loss);
    encoder.tensor(loss_buffer_lse, rows.lse);
    if (rows.scale.defined()) encoder.tensor(loss_buffer_scale, rows.scale);
    if (rows.upstream.defined()) encoder.tensor(loss_buffer_upstream, rows.upstream);
    if (rows.gradient.defined()) encoder.tensor(loss_buffer_gradient, rows.gradient);
    encoder.params(loss_buffer_params, params);
    encoder.dispatch(grid((params.rows + static_cast<size_t>(together) - 1) / static_cast<size_t>(together)),
                     {.x = static_cast<size_t>(32 * simdgroups * together)});
  });
}

// The scale of a mean, and nothing for other reductions.
at::Tensor launch_count(const char* op, const at::Tensor& targets, const Options& options,
                        const at::TensorOptions& f32) {
  at::Tensor scale = at::empty({options.reduction == "mean" ? 1 : 0}, f32);
  if (scale.numel() == 0) return scale;
  const loss_params params = params_of(op, {.targets = targets}, options);
  auto kernel = pipeline(c10::str("cross_entropy_count_", is_i64(targets) ? "i64" : "i32"));
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(loss_buffer_targets_i32, targets);
    encoder.tensor(loss_buffer_scale, scale);
    encoder.params(loss_buffer_params, params);
    encoder.dispatch({.x = 1}, {.x = loss_reduce_threads});
  });
  return scale;
}

at::Tensor launch_sum(const char* op, const at::Tensor& losses, const at::Tensor& scale, const Options& options) {
  at::Tensor loss = at::empty({}, losses.options());
  const bool has_scale = scale.numel() > 0;
  const loss_params params = params_of(op, {.targets = losses}, options);
  auto kernel = pipeline("cross_entropy_sum_f32", {{loss_constant_scale, "scale", has_scale}});
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(loss_buffer_lse, losses);
    encoder.tensor(loss_buffer_loss, loss);
    if (has_scale) encoder.tensor(loss_buffer_scale, scale);
    encoder.params(loss_buffer_params, params);
    encoder.dispatch({.x = 1}, {.x = loss_reduce_threads});
  });
  return loss;
}

// Puts `block` into the rows of `whole` from `first` on; both are contiguous.
void launch_copy(const char* op, const at::Tensor& block, const at::Tensor& whole, int64_t first) {
  const loss_copy_params params{.count = static_cast<uint64_t>(block.numel()),
                                .offset = static_cast<uint64_t>(first * whole.stride(0))};
  const uint64_t pack = static_cast<uint64_t>(16 / block.element_size());
  const bool packs = params.count % pack == 0 && params.offset % pack == 0;
  auto kernel = pipeline(c10::str("loss_copy_", dtype_suffix(block)), {{loss_constant_packs, "packs", packs}});
  const size_t each = loss_reduce_threads * (packs ? pack : 1);
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(loss_buffer_logits, block);
    encoder.tensor(loss_buffer_gradient, whole);
    encoder.params(loss_buffer_params, params);
    encoder.dispatch(grid((params.count + each - 1) / each), {.x = loss_reduce_threads});
  });
}

at::Tensor defined_if(bool wanted, const at::Tensor& tensor) { return wanted ? tensor : at::Tensor(); }

// The rows of hidden, as one dimension; refused where no single stride describes them.
at::Tensor flat_rows(const char* op, const at::Tensor& hidden) {
  const size_t leading = static_cast<size_t>(hidden.dim() - 1);
  const Dims dims = merged_dims(hidden.sizes().slice(0, leading), {hidden.strides().slice(0, leading)});
  require_supported(dims.sizes.size() == 1, op, "expected hidden with leading dimensions that one stride describes; ",
                    "pass hidden.contiguous()");
  return view(hidden, {dims.sizes[0], hidden.size(-1)}, {dims.strides[0][0], hidden.stride(-1)});
}

}  // namespace

void check_cross_entropy(std::string_view op_name, const at::Tensor& logits, const at::Tensor& targets,
                         int64_t ignore_index, double label_smoothing, double z_loss, std::optional<double> soft_cap,
                         std::string_view reduction) {
  const std::string name(op_name);
  const char* op = name.c_str();
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  const Arg logits_arg{op, "logits", logits};
  check_device(logits_arg);
  check_dtype(logits_arg);
  check_dim_between(logits_arg, 1, 64);
  check_targets({op, "targets", targets}, logits_arg);
  require_value(logits.sym_size(-1).sym_ge(1), op, "expected at least one class, got logits.size(-1) == 0");
  check_options(op, options);
}

void check_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& targets,
                                  const at::Tensor& lse, const at::Tensor& scale, int64_t ignore_index,
                                  double label_smoothing, double z_loss, std::optional<double> soft_cap,
                                  std::string_view reduction) {
  const char* op = "cross_entropy_backward";
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  check_cross_entropy(op, logits, targets, ignore_index, label_smoothing, z_loss, soft_cap, reduction);
  check_saved({op, "grad", grad}, {op, "lse", lse}, {op, "scale", scale}, targets, {op, "logits", logits}, options);
}

void check_linear_cross_entropy(std::string_view op_name, const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets, int64_t ignore_index, double label_smoothing, double z_loss,
                                std::optional<double> soft_cap, std::string_view reduction,
                                std::optional<int64_t> chunk) {
  const std::string name(op_name);
  const char* op = name.c_str();
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  const Arg hidden_arg{op, "hidden", hidden}, weight_arg{op, "weight", weight};
  check_device(hidden_arg);
  check_device(weight_arg, hidden_arg);
  check_dtype(hidden_arg);
  check_same_dtype(weight_arg, hidden_arg);
  check_dim_between(hidden_arg, 1, 64);
  check_dim(weight_arg, 2);
  check_size(weight_arg, 1, hidden.sym_size(-1), "to match hidden.size(-1)");
  check_targets({op, "targets", targets}, hidden_arg);
  require_value(weight.sym_size(0).sym_ge(1), op, "expected at least one class, got weight.size(0) == 0");
  check_options(op, options);
  require_value(!chunk || *chunk > 0, op, "expected chunk > 0, got ", chunk.value_or(0));
}

void check_linear_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& hidden, const at::Tensor& weight,
                                         const at::Tensor& targets, const at::Tensor& lse, const at::Tensor& scale,
                                         int64_t ignore_index, double label_smoothing, double z_loss,
                                         std::optional<double> soft_cap, std::string_view reduction,
                                         std::optional<int64_t> chunk) {
  const char* op = "linear_cross_entropy_backward";
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  check_linear_cross_entropy(op, hidden, weight, targets, ignore_index, label_smoothing, z_loss, soft_cap, reduction,
                             chunk);
  check_saved({op, "grad", grad}, {op, "lse", lse}, {op, "scale", scale}, targets, {op, "hidden", hidden}, options);
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cross_entropy(const at::Tensor& logits,
                                                                         const at::Tensor& targets,
                                                                         int64_t ignore_index, double label_smoothing,
                                                                         double z_loss, std::optional<double> soft_cap,
                                                                         std::string_view reduction, bool gradient) {
  const char* op = "cross_entropy";
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  check_cross_entropy(op, logits, targets, ignore_index, label_smoothing, z_loss, soft_cap, reduction);
  const at::TensorOptions f32 = logits.options().dtype(at::kFloat);
  at::Tensor losses = at::empty(targets.sizes(), f32), lse = at::empty(targets.sizes(), f32);
  at::Tensor of_logits = at::empty(gradient ? logits.sizes() : at::IntArrayRef{0}, logits.options());
  at::Tensor scale = launch_count(op, targets, options, f32);
  launch_rows(op,
              {.logits = logits,
               .targets = targets,
               .loss = losses,
               .lse = lse,
               .scale = defined_if(gradient && scale.numel() > 0, scale),
               .gradient = defined_if(gradient, of_logits),
               .all_classes = logits.size(-1)},
              options);
  if (options.reduction != "none") losses = launch_sum(op, losses, scale, options);
  return {losses, lse, scale, of_logits};
}

at::Tensor cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& targets,
                                  const at::Tensor& lse, const at::Tensor& scale, int64_t ignore_index,
                                  double label_smoothing, double z_loss, std::optional<double> soft_cap,
                                  std::string_view reduction) {
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  check_cross_entropy_backward(grad, logits, targets, lse, scale, ignore_index, label_smoothing, z_loss, soft_cap,
                               reduction);
  at::Tensor of_logits = at::empty(logits.sizes(), logits.options());
  launch_rows("cross_entropy_backward",
              {.logits = logits,
               .targets = targets,
               .lse = lse,
               .scale = defined_if(scale.numel() > 0, scale),
               .upstream = grad,
               .gradient = of_logits,
               .all_classes = logits.size(-1)},
              options);
  return of_logits;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                                                    const at::Tensor& targets, int64_t ignore_index,
                                                                    double label_smoothing, double z_loss,
                                                                    std::optional<double> soft_cap,
                                                                    std::string_view reduction,
                                                                    std::optional<int64_t> chunk) {
  const char* op = "linear_cross_entropy";
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  check_linear_cross_entropy(op, hidden, weight, targets, ignore_index, label_smoothing, z_loss, soft_cap, reduction,
                             chunk);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastMPS);
  const at::TensorOptions f32 = hidden.options().dtype(at::kFloat);
  at::Tensor losses = at::empty(targets.sizes(), f32), lse = at::empty(targets.sizes(), f32);
  at::Tensor scale = launch_count(op, targets, options, f32);
  const int64_t rows = targets.numel(), classes = weight.size(0);
  if (rows > 0) {
    const at::Tensor x = flat_rows(op, hidden), t = view(targets.contiguous(), {rows}, {1});
    const at::Tensor loss_rows = view(losses, {rows}, {1}), lse_rows = view(lse, {rows}, {1});
    const int64_t step = std::min(rows, chunk.value_or(choose_chunk(device().family, rows, classes)));
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      launch_rows(op,
                  {.logits = matmul(rows_of(x, first, count), transposed(weight)),
                   .targets = rows_of(t, first, count),
                   .loss = rows_of(loss_rows, first, count),
                   .lse = rows_of(lse_rows, first, count),
                   .all_classes = classes},
                  options);
    }
  }
  if (options.reduction != "none") losses = launch_sum(op, losses, scale, options);
  return {losses, lse, scale};
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(
    const at::Tensor& grad, const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
    const at::Tensor& lse, const at::Tensor& scale, int64_t ignore_index, double label_smoothing, double z_loss,
    std::optional<double> soft_cap, std::string_view reduction, std::optional<int64_t> chunk, bool hidden_gradient,
    bool weight_gradient) {
  const char* op = "linear_cross_entropy_backward";
  const Options options{ignore_index, label_smoothing, z_loss, soft_cap, reduction};
  check_linear_cross_entropy_backward(grad, hidden, weight, targets, lse, scale, ignore_index, label_smoothing, z_loss,
                                      soft_cap, reduction, chunk);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastMPS);
  const auto empty_if = [&](bool wanted, const at::Tensor& like) {
    return at::empty(wanted ? like.sizes() : at::IntArrayRef{0}, like.options());
  };
  at::Tensor of_hidden = empty_if(hidden_gradient, hidden), of_weight = empty_if(weight_gradient, weight);
  const int64_t rows = targets.numel(), classes = weight.size(0), columns = weight.size(1);
  if (rows == 0) {
    if (weight_gradient) of_weight = matmul(view(hidden, {classes, 0}, {0, 0}), view(hidden, {0, columns}, {0, 0}));
    return {of_hidden, of_weight};
  }
  const at::Tensor x = flat_rows(op, hidden), t = view(targets.contiguous(), {rows}, {1});
  const at::Tensor lse_rows = view(lse, {rows}, {1});
  const bool each = grad.dim() > 0;
  // A number for each row, in whatever order autograd left them; so it is with targets.
  const at::Tensor upstream = each ? view(grad.contiguous(), {rows}, {1}) : grad;
  const int64_t step = std::min(rows, chunk.value_or(choose_chunk(device().family, rows, classes)));
  // The gradient of logits of some rows and classes, in their place.
  const auto of_logits = [&](int64_t first, int64_t count, int64_t first_class, int64_t some) {
    const at::Tensor logits = matmul(rows_of(x, first, count), transposed(rows_of(weight, first_class, some)));
    launch_rows(op,
                {.logits = logits,
                 .targets = rows_of(t, first, count),
                 .lse = rows_of(lse_rows, first, count),
                 .scale = defined_if(scale.numel() > 0, scale),
                 .upstream = each ? rows_of(upstream, first, count) : upstream,
                 .gradient = logits,
                 .first_class = first_class,
                 .all_classes = classes},
                options);
    return logits;
  };
  const auto fill = [&](at::Tensor& whole, int64_t length, int64_t at_once, const auto& block_of) {
    const at::Tensor flat = view(whole, {length, columns}, {columns, 1});
    for (int64_t first = 0; first < length; first += at_once) {
      const at::Tensor block = block_of(first, std::min(at_once, length - first));
      if (block.numel() > 0) launch_copy(op, block, flat, first);
    }
  };
  if (hidden_gradient) {
    fill(of_hidden, rows, step,
         [&](int64_t first, int64_t count) { return matmul(of_logits(first, count, 0, classes), weight); });
  }
  if (weight_gradient) {  // of all rows at once, so that nothing is added up in halves: as many classes as fit instead
    const int64_t some = std::clamp<int64_t>(step * classes / rows, 1, classes);
    fill(of_weight, classes, some > 64 ? some / 64 * 64 : some,
         [&](int64_t first, int64_t count) { return matmul(transposed(of_logits(0, rows, first, count)), x); });
  }
  return {of_hidden, of_weight};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  const std::string options =
      "int ignore_index=-100, float label_smoothing=0.0, float z_loss=0.0, float? soft_cap=None, "
      "str reduction=\"mean\"";
  const auto define = [&](const std::string& begin, const std::string& end, auto* kernel, Gradient gradient,
                          Autocast autocasts = Autocast::keeps) {
    define_op(m, (begin + ", *, " + options + end).c_str(), kernel, gradient, autocasts);
  };
  define("cross_entropy(Tensor logits, Tensor targets",
         ", bool gradient=False) -> (Tensor loss, Tensor lse, Tensor scale, Tensor of_logits)", cross_entropy,
         Gradient::registered);
  define("cross_entropy_backward(Tensor grad, Tensor logits, Tensor targets, Tensor lse, Tensor scale", ") -> Tensor",
         cross_entropy_backward, Gradient::refused);
  define("linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets",
         ", int? chunk=None) -> (Tensor loss, Tensor lse, Tensor scale)", linear_cross_entropy, Gradient::registered,
         Autocast::casts);
  define("linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor targets, Tensor lse, "
         "Tensor scale",
         ", int? chunk=None, bool hidden_gradient=True, bool weight_gradient=True) -> (Tensor, Tensor)",
         linear_cross_entropy_backward, Gradient::refused);
}

}  // namespace mpsk
