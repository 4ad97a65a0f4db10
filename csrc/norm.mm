// The norms of rows and what is fused with them. Any number of leading dimensions with any strides; the kernels read
// rows where they are. The ops differ in which tensors there are; checks and launches are the same code.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "norm_common.h"
#include "norm_params.h"
#include "norm_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

// A call of one of the ops. Those that lack a tensor leave it out.
struct Norm {
  const char* op;
  at::Tensor x = {};
  OptionalTensor residual = {};
  OptionalTensor gate = {};
  OptionalTensor weight = {};
  OptionalTensor bias = {};
  OptionalTensor scale = {};
  OptionalTensor shift = {};
  OptionalTensor grad = {};
  OptionalTensor grad_residual = {};
  double eps = 0.0;
  double weight_offset = 0.0;
  bool centered = false;
  bool gate_first = false;
  const char* x_name = "x";
};

// As x in device, dtype and shape.
void check_like_x(const Norm& n, const char* name, const OptionalTensor& tensor) {
  if (!tensor) return;
  const Arg x{n.op, n.x_name, n.x}, arg{n.op, name, *tensor};
  check_device(arg, x);
  check_same_dtype(arg, x);
  check_dim(arg, n.x.dim());
  for (int64_t d = 0; d < n.x.dim(); ++d) {
    check_size(arg, d, n.x.sym_size(d), c10::str("to match ", n.x_name, ".size(", d, ")"));
  }
}

// A value for each column: of each sample, or of all.
void check_columns(const Norm& n, const char* name, const OptionalTensor& tensor, bool of_sample) {
  if (!tensor) return;
  const Arg x{n.op, n.x_name, n.x}, arg{n.op, name, *tensor};
  check_device(arg, x);
  require_type(tensor->scalar_type() == n.x.scalar_type() || tensor->scalar_type() == at::kFloat, n.op, "expected ",
               name, " of dtype ", dtype_name(n.x), " to match ", n.x_name, ", or float32, got ", dtype_name(*tensor));
  check_dim(arg, of_sample ? 2 : 1);
  if (of_sample) check_size(arg, 0, n.x.sym_size(0), c10::str("to match ", n.x_name, ".size(0)"));
  check_size(arg, -1, n.x.sym_size(-1), c10::str("to match ", n.x_name, ".size(-1)"));
}

void check_same_dtype_if_both(const Norm& n, const char* name, const OptionalTensor& tensor, const char* like_name,
                              const OptionalTensor& like) {
  if (tensor && like) check_same_dtype({n.op, name, *tensor}, {n.op, like_name, *like});
}

void check(const Norm& n) {
  const Arg x{n.op, n.x_name, n.x};
  check_device(x);
  check_dtype(x);
  check_dim_between(x, n.scale ? 2 : 1, norm_max_dims + 1);
  check_like_x(n, "grad", n.grad);
  check_like_x(n, "grad_residual", n.grad_residual);
  check_like_x(n, "residual", n.residual);
  check_like_x(n, "gate", n.gate);
  check_columns(n, "weight", n.weight, false);
  check_columns(n, "bias", n.bias, false);
  check_same_dtype_if_both(n, "bias", n.bias, "weight", n.weight);
  check_columns(n, "scale", n.scale, true);
  check_columns(n, "shift", n.shift, true);
  check_same_dtype_if_both(n, "shift", n.shift, "scale", n.scale);
  require_value(finite_f32(n.eps) && n.eps >= 0, n.op, "expected an eps >= 0 that is finite in float32, got ", n.eps);
  require_value(finite_f32(n.weight_offset), n.op, "expected an offset that is finite in float32, got ",
                n.weight_offset);
}

// The leading dimensions, innermost first, neighbours that one stride describes merged.
norm_rows rows_of(const at::Tensor& tensor) {
  norm_rows rows{.strides = {}, .column_stride = tensor.stride(-1), .sizes = {}, .dims = 0, .padding = 0};
  for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (rows.dims > 0 && stride == rows.strides[rows.dims - 1] * rows.sizes[rows.dims - 1]) {
      rows.sizes[rows.dims - 1] *= static_cast<uint32_t>(size);  // at most all rows, whose number fits
    } else {
      rows.sizes[rows.dims] = static_cast<uint32_t>(size);
      rows.strides[rows.dims++] = stride;
    }
  }
  rows.dims = std::max(rows.dims, 1u);  // a single row has stride 0
  return rows;
}
norm_rows rows_of(const OptionalTensor& tensor) { return tensor ? rows_of(*tensor) : norm_rows{}; }

// Whether the four columns from any multiple of four on can be moved as one.
bool in_vectors(const at::Tensor& tensor) {
  if (tensor.stride(-1) != 1 || tensor.size(-1) % 4 != 0 || tensor.storage_offset() % 4 != 0) return false;
  for (int64_t d = 0; d < tensor.dim() - 1; ++d) {
    if (tensor.size(d) != 1 && tensor.stride(d) % 4 != 0) return false;
  }
  return true;
}
bool in_vectors(const Norm& n) {
  const OptionalTensor* others[] = {&n.residual, &n.gate,  &n.weight, &n.bias,
                                    &n.scale,    &n.shift, &n.grad,   &n.grad_residual};
  return in_vectors(n.x) && std::all_of(std::begin(others), std::end(others),
                                        [](const OptionalTensor* t) { return !*t || in_vectors(**t); });
}

at::Tensor empty_like(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options().memory_format(at::MemoryFormat::Contiguous));
}
// What both directions say alike of a call that has elements.
norm_params params_of(const Norm& n) {
  const int64_t columns = n.x.size(-1), rows = n.x.numel() / columns, samples = n.scale ? n.x.size(0) : 1;
  narrow<int32_t>(columns, n.op, "x.size(-1)");
  narrow<uint32_t>(rows, n.op, "x.numel() / x.size(-1)");
  const norm_scales scales(n.x, n.eps, columns);
  return {
      .x = rows_of(n.x),
      .residual = rows_of(n.grad_residual ? n.grad_residual : n.residual),
      .gate = rows_of(n.gate),
      .grad = rows_of(n.grad),
      .weight_stride = n.weight ? n.weight->stride(0) : 0,
      .bias_stride = n.bias ? n.bias->stride(0) : 0,
      .scale_stride = n.scale ? n.scale->stride(0) : 0,
      .scale_column_stride = n.scale ? n.scale->stride(1) : 0,
      .shift_stride = n.shift ? n.shift->stride(0) : 0,
      .shift_column_stride = n.shift ? n.shift->stride(1) : 0,
      .rows = static_cast<uint32_t>(rows),
      .columns = static_cast<uint32_t>(columns),
      .simdgroups_per_row = 0,
      .rows_per_threadgroup = 0,
      .samples = static_cast<uint32_t>(samples),
      .rows_per_sample = static_cast<uint32_t>(rows / samples),
      .rows_per_part = 0,
      .parts_per_sample = 0,
      .weight_offset = static_cast<float>(n.weight_offset),
      .scale = static_cast<float>(scales.usual),
      .scale_large = static_cast<float>(scales.large),
      .large = scales.threshold,
      .eps = scales.eps_times(scales.usual),
      .eps_large = scales.eps_times(scales.large),
      .mean_scale = static_cast<float>(std::ldexp(scales.usual, 32) / static_cast<double>(columns)),
      .mean_scale_large = static_cast<float>(std::ldexp(scales.large, 32) / static_cast<double>(columns)),
  };
}

void set_plan(norm_params& params, const norm_plan& plan) {
  params.simdgroups_per_row = static_cast<uint32_t>(plan.simdgroups);
  params.rows_per_threadgroup = static_cast<uint32_t>(plan.at_once);
  params.rows_per_part = static_cast<uint32_t>(plan.rows);
  params.parts_per_sample = static_cast<uint32_t>(plan.parts);
}

void dispatch_rows(Encoder& encoder, const norm_params& params, int64_t count) {
  const size_t groups = static_cast<size_t>(ceil_div(count, params.rows_per_threadgroup));
  const size_t width = std::min<size_t>(groups, norm_grid_width);
  encoder.dispatch({.x = width, .y = (groups + width - 1) / width},
                   {.x = size_t{params.simdgroups_per_row} * simd_width * params.rows_per_threadgroup});
}

int64_t bytes_of(const OptionalTensor& tensor) { return tensor ? tensor->element_size() : 0; }

struct Outputs {
  at::Tensor out;
  at::Tensor residual_out;  // undefined without a residual
};

Outputs forward(const Norm& n) {
  check(n);
  Outputs outputs{empty_like(n.x), n.residual ? empty_like(n.x) : at::Tensor()};
  if (n.x.numel() == 0) return outputs;
  norm_params params = params_of(n);
  const norm_choice& choice = choose_norm(norm_forward_choices, device().family, params.columns);
  const bool parameters_f32 = is_f32_beside(n.x, n.weight, n.bias);
  const bool has_modulation = n.scale.has_value();
  const bool factor = n.weight || has_modulation, addend = n.bias || has_modulation;
  const int64_t residual = n.residual.has_value(), gate = n.gate.has_value();
  const norm_plan plan = plan_norm_forward(
      choice, {.cores = device().cores,
               .rows = params.rows_per_sample,
               .samples = params.samples,
               .columns = params.columns,
               .element_bytes = n.x.element_size(),
               .parameters = int64_t{factor} + addend,
               .parameter_bytes = bytes_of(n.weight) + bytes_of(n.bias) + bytes_of(n.scale) + bytes_of(n.shift),
               .narrow = !parameters_f32 && !has_modulation,
               .taken = 1 + residual + (n.gate_first ? gate : 0),
               .moved = 2 + 2 * residual + gate,
               .sums = 0});
  set_plan(params, plan);
  auto kernel = pipeline(c10::str(choice.kernel, "_", dtype_suffix(n.x), choice.tile),
                         {{norm_constant_centered, "centered", n.centered},
                          {norm_constant_residual, "residual", n.residual.has_value()},
                          {norm_constant_gate, "gate", n.gate.has_value()},
                          {norm_constant_gate_first, "gate_first", n.gate_first},
                          {norm_constant_weight, "weight", n.weight.has_value()},
                          {norm_constant_bias, "bias", n.bias.has_value()},
                          {norm_constant_parameters_f32, "parameters_f32", parameters_f32},
                          {norm_constant_modulation, "modulation", has_modulation},
                          {norm_constant_modulation_f32, "modulation_f32", is_f32_beside(n.x, n.scale, n.shift)},
                          {norm_constant_vectors, "vectors", in_vectors(n)},
                          {norm_constant_held, "held", plan.held},
                          {norm_constant_ahead, "ahead", plan.ahead}});
  launch(n.op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(norm_buffer_x, n.x);
    bind_if(encoder, norm_buffer_residual, n.residual);
    bind_if(encoder, norm_buffer_gate, n.gate);
    bind_if(encoder, norm_buffer_weight, n.weight);
    bind_if(encoder, norm_buffer_bias, n.bias);
    bind_if(encoder, norm_buffer_scale, n.scale);
    bind_if(encoder, norm_buffer_shift, n.shift);
    encoder.tensor(norm_buffer_out, outputs.out);
    if (n.residual) encoder.tensor(norm_buffer_residual_out, outputs.residual_out);
    encoder.params(norm_buffer_params, params);
    dispatch_rows(encoder, params, plan.parts * params.samples);
  });
  return outputs;
}

// Those that are not asked for, or do not exist, have shape (0,).
struct Gradients {
  at::Tensor x, gate, weight, bias, scale, shift;
};

Gradients backward(const Norm& n, bool grad_x, bool grad_parameters) {
  check(n);
  const auto wanted = [&](const OptionalTensor& tensor, bool asked) {
    return tensor && asked ? empty_like(*tensor) : none_like(n.x);
  };
  Gradients gradients{
      .x = wanted(n.x, grad_x),
      .gate = wanted(n.gate, grad_x),
      .weight = wanted(n.weight, grad_parameters),
      .bias = wanted(n.bias, grad_parameters),
      .scale = wanted(n.scale, grad_parameters),
      .shift = wanted(n.scale, grad_parameters),  // whose shape and dtype it has
  };
  grad_parameters = grad_parameters && (n.weight || n.bias || n.scale);
  if (n.x.size(-1) == 0 || (n.x.numel() == 0 && !grad_parameters)) return gradients;
  // Gradients of parameters are zeros where there are no rows.
  norm_params params = n.x.numel() == 0 ? norm_params{} : params_of(n);
  const norm_choice& choice = choose_norm(norm_backward_choices, device().family, n.x.size(-1));
  if (n.x.numel() == 0) {
    params.columns = static_cast<uint32_t>(narrow<int32_t>(n.x.size(-1), n.op, "x.size(-1)"));
    params.samples = n.scale ? narrow<uint32_t>(n.x.size(0), n.op, "x.size(0)") : 1;
    if (n.scale) params.scale_stride = n.scale->stride(0), params.scale_column_stride = n.scale->stride(1);
  }
  const bool two_sums = n.bias || n.scale;
  const bool parameters_f32 = is_f32_beside(n.x, n.weight, n.bias);
  const bool modulation_f32 = is_f32_beside(n.x, n.scale, n.shift);
  norm_plan plan{};
  if (n.x.numel() != 0) {
    const int64_t gate = n.gate.has_value(), residual = n.grad_residual.has_value();
    plan = plan_norm_backward(choice, {.cores = device().cores,
                                       .rows = params.rows_per_sample,
                                       .samples = params.samples,
                                       .columns = params.columns,
                                       .element_bytes = n.x.element_size(),
                                       .parameters = n.weight || n.scale,
                                       .parameter_bytes = bytes_of(n.weight) + bytes_of(n.scale),
                                       .narrow = false,
                                       .taken = 2 + gate,
                                       .moved = 3 + 2 * gate + residual,  // so that what is asked for changes no bit
                                       .sums = grad_parameters ? 1 + two_sums : 0});
    set_plan(params, plan);
  }
  const int64_t parts = params.samples * plan.parts;
  std::shared_ptr<const Pipeline> rows_kernel, parameters_kernel;
  at::Tensor partials;
  if (parts > 0 && (grad_x || grad_parameters)) {
    rows_kernel = pipeline(c10::str(choice.kernel, "_", dtype_suffix(n.x), choice.tile),
                           {{norm_constant_centered, "centered", n.centered},
                            {norm_constant_residual, "residual", n.grad_residual.has_value()},
                            {norm_constant_gate, "gate", n.gate.has_value()},
                            {norm_constant_gate_first, "gate_first", n.gate_first},
                            {norm_constant_weight, "weight", n.weight.has_value()},
                            {norm_constant_parameters_f32, "parameters_f32", parameters_f32},
                            {norm_constant_modulation, "modulation", n.scale.has_value()},
                            {norm_constant_modulation_f32, "modulation_f32", modulation_f32},
                            {norm_constant_vectors, "vectors", in_vectors(n)},
                            {norm_constant_held, "held", plan.held},
                            {norm_constant_ahead, "ahead", plan.ahead},
                            {norm_constant_kept, "kept", plan.kept},
                            {norm_constant_grad_x, "grad_x", grad_x},
                            {norm_constant_grad_gate, "grad_gate", grad_x && n.gate},
                            {norm_constant_grad_parameters, "grad_parameters", grad_parameters},
                            {norm_constant_two_sums, "two_sums", two_sums}});
  }
  if (grad_parameters) {
    parameters_kernel = pipeline(c10::str("norm_parameters_", dtype_suffix(n.x)),
                                 {{norm_constant_weight, "weight", n.weight.has_value()},
                                  {norm_constant_bias, "bias", n.bias.has_value()},
                                  {norm_constant_parameters_f32, "parameters_f32", parameters_f32},
                                  {norm_constant_modulation, "modulation", n.scale.has_value()},
                                  {norm_constant_modulation_f32, "modulation_f32", modulation_f32},
                                  {norm_constant_two_sums, "two_sums", two_sums}});
    partials = at::empty({parts > 0 ? parts / plan.at_once : 0, two_sums ? 2 : 1, n.x.size(-1)},
                         n.x.options().dtype(at::kFloat));
  }
  launch(n.op, [&](Encoder& encoder) {
    if (rows_kernel) {
      encoder.use(rows_kernel);
      encoder.tensor(norm_buffer_x, n.x);
      encoder.tensor(norm_buffer_grad, *n.grad);
      bind_if(encoder, norm_buffer_grad_residual, n.grad_residual);
      bind_if(encoder, norm_buffer_gate, n.gate);
      bind_if(encoder, norm_buffer_weight, n.weight);
      bind_if(encoder, norm_buffer_scale, n.scale);
      if (grad_x) encoder.tensor(norm_buffer_grad_x, gradients.x);
      if (grad_x && n.gate) encoder.tensor(norm_buffer_grad_gate, gradients.gate);
      if (grad_parameters) encoder.tensor(norm_buffer_partials, partials);
      encoder.params(norm_buffer_params, params);
      dispatch_rows(encoder, params, parts);
    }
    if (!grad_parameters) return;
    if (rows_kernel) encoder.barrier();
    norm_params of_columns = params;
    if (parts > 0) of_columns.parts_per_sample = static_cast<uint32_t>(plan.parts / plan.at_once);
    of_columns.simdgroups_per_row = static_cast<uint32_t>(
        std::clamp<int64_t>(n.scale ? params.samples : of_columns.parts_per_sample, 1, norm_row_threads / simd_width));
    of_columns.rows_per_threadgroup = 1;
    encoder.use(parameters_kernel);
    encoder.tensor(norm_buffer_partials, partials);
    bind_if(encoder, norm_buffer_weight, n.weight);
    bind_if(encoder, norm_buffer_bias, n.bias);
    bind_if(encoder, norm_buffer_scale, n.scale);
    if (n.weight) encoder.tensor(norm_buffer_grad_weight, gradients.weight);
    if (n.bias) encoder.tensor(norm_buffer_grad_bias, gradients.bias);
    if (n.scale) {
      encoder.tensor(norm_buffer_grad_scale, gradients.scale);
      encoder.tensor(norm_buffer_grad_shift, gradients.shift);
    }
    encoder.params(norm_buffer_params, of_columns);
    dispatch_rows(encoder, of_columns, ceil_div(params.columns, norm_parameter_columns));
  });
  return gradients;
}

// What each op is a call of.
Norm rms_norm_call(const at::Tensor& x, const OptionalTensor& weight, double eps, double offset) {
  return {.op = "rms_norm", .x = x, .weight = weight, .eps = eps, .weight_offset = offset};
}
Norm rms_norm_backward_call(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight, double eps,
                            double offset) {
  return {.op = "rms_norm_backward", .x = x, .weight = weight, .grad = grad, .eps = eps, .weight_offset = offset};
}
Norm layer_norm_call(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return {.op = "layer_norm", .x = x, .weight = weight, .bias = bias, .eps = eps, .centered = true};
}
Norm layer_norm_backward_call(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight,
                              const OptionalTensor& bias, double eps) {
  return {
      .op = "layer_norm_backward", .x = x, .weight = weight, .bias = bias, .grad = grad, .eps = eps, .centered = true};
}
Norm add_rms_norm_call(const at::Tensor& x, const at::Tensor& residual, const OptionalTensor& weight, double eps,
                       double offset) {
  return {.op = "add_rms_norm", .x = x, .residual = residual, .weight = weight, .eps = eps, .weight_offset = offset};
}
Norm add_rms_norm_backward_call(const at::Tensor& grad, const OptionalTensor& grad_residual,
                                const at::Tensor& residual_out, const OptionalTensor& weight, double eps,
                                double offset) {
  return {.op = "add_rms_norm_backward",
          .x = residual_out,
          .weight = weight,
          .grad = grad,
          .grad_residual = grad_residual,
          .eps = eps,
          .weight_offset = offset,
          .x_name = "residual_out"};
}
Norm add_layer_norm_call(const at::Tensor& x, const at::Tensor& residual, const OptionalTensor& weight,
                         const OptionalTensor& bias, double eps) {
  return {.op = "add_layer_norm",
          .x = x,
          .residual = residual,
          .weight = weight,
          .bias = bias,
          .eps = eps,
          .centered = true};
}
Norm add_layer_norm_backward_call(const at::Tensor& grad, const OptionalTensor& grad_residual,
                                  const at::Tensor& residual_out, const OptionalTensor& weight,
                                  const OptionalTensor& bias, double eps) {
  return {.op = "add_layer_norm_backward",
          .x = residual_out,
          .weight = weight,
          .bias = bias,
          .grad = grad,
          .grad_residual = grad_residual,
          .eps = eps,
          .centered = true,
          .x_name = "residual_out"};
}
Norm gated_rms_norm_call(const at::Tensor& x, const at::Tensor& gate, const OptionalTensor& weight, double eps,
                         bool norm_before_gate) {
  return {.op = "gated_rms_norm", .x = x, .gate = gate, .weight = weight, .eps = eps, .gate_first = !norm_before_gate};
}
Norm gated_rms_norm_backward_call(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gate,
                                  const OptionalTensor& weight, double eps, bool norm_before_gate) {
  return {.op = "gated_rms_norm_backward",
          .x = x,
          .gate = gate,
          .weight = weight,
          .grad = grad,
          .eps = eps,
          .gate_first = !norm_before_gate};
}
Norm modulated_norm_call(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                         const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms) {
  return {.op = "modulated_norm",
          .x = x,
          .weight = weight,
          .bias = bias,
          .scale = scale,
          .shift = shift,
          .eps = eps,
          .centered = !rms};
}
Norm modulated_norm_backward_call(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                  const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms) {
  return {.op = "modulated_norm_backward",
          .x = x,
          .weight = weight,
          .bias = bias,
          .scale = scale,
          .grad = grad,
          .eps = eps,
          .centered = !rms};
}

}  // namespace

void check_rms_norm(const at::Tensor& x, const OptionalTensor& weight, double eps, double offset) {
  check(rms_norm_call(x, weight, eps, offset));
}
void check_rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight, double eps,
                             double offset) {
  check(rms_norm_backward_call(grad, x, weight, eps, offset));
}
void check_layer_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  check(layer_norm_call(x, weight, bias, eps));
}
void check_layer_norm_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight,
                               const OptionalTensor& bias, double eps) {
  check(layer_norm_backward_call(grad, x, weight, bias, eps));
}
void check_add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const OptionalTensor& weight, double eps,
                        double offset) {
  check(add_rms_norm_call(x, residual, weight, eps, offset));
}
void check_add_rms_norm_backward(const at::Tensor& grad, const OptionalTensor& grad_residual,
                                 const at::Tensor& residual_out, const OptionalTensor& weight, double eps,
                                 double offset) {
  check(add_rms_norm_backward_call(grad, grad_residual, residual_out, weight, eps, offset));
}
void check_add_layer_norm(const at::Tensor& x, const at::Tensor& residual, const OptionalTensor& weight,
                          const OptionalTensor& bias, double eps) {
  check(add_layer_norm_call(x, residual, weight, bias, eps));
}
void check_add_layer_norm_backward(const at::Tensor& grad, const OptionalTensor& grad_residual,
                                   const at::Tensor& residual_out, const OptionalTensor& weight,
                                   const OptionalTensor& bias, double eps) {
  check(add_layer_norm_backward_call(grad, grad_residual, residual_out, weight, bias, eps));
}
void check_gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const OptionalTensor& weight, double eps,
                          bool norm_before_gate) {
  check(gated_rms_norm_call(x, gate, weight, eps, norm_before_gate));
}
void check_gated_rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gate,
                                   const OptionalTensor& weight, double eps, bool norm_before_gate) {
  check(gated_rms_norm_backward_call(grad, x, gate, weight, eps, norm_before_gate));
}
void check_modulated_norm(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                          const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms) {
  check(modulated_norm_call(x, scale, shift, weight, bias, eps, rms));
}
void check_modulated_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                   const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms) {
  check(modulated_norm_backward_call(grad, x, scale, weight, bias, eps, rms));
}

at::Tensor rms_norm(const at::Tensor& x, const OptionalTensor& weight, double eps, double offset) {
  return forward(rms_norm_call(x, weight, eps, offset)).out;
}
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                     const OptionalTensor& weight, double eps, double offset,
                                                     bool grad_x, bool grad_parameters) {
  const Gradients g = backward(rms_norm_backward_call(grad, x, weight, eps, offset), grad_x, grad_parameters);
  return {g.x, g.weight};
}
at::Tensor layer_norm(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return forward(layer_norm_call(x, weight, bias, eps)).out;
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                   const OptionalTensor& weight,
                                                                   const OptionalTensor& bias, double eps, bool grad_x,
                                                                   bool grad_parameters) {
  const Gradients g = backward(layer_norm_backward_call(grad, x, weight, bias, eps), grad_x, grad_parameters);
  return {g.x, g.weight, g.bias};
}
std::tuple<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x, const at::Tensor& residual,
                                                const OptionalTensor& weight, double eps, double offset) {
  auto [out, residual_out] = forward(add_rms_norm_call(x, residual, weight, eps, offset));
  return {out, residual_out};
}
std::tuple<at::Tensor, at::Tensor> add_rms_norm_backward(const at::Tensor& grad, const OptionalTensor& grad_residual,
                                                         const at::Tensor& residual_out, const OptionalTensor& weight,
                                                         double eps, double offset, bool grad_x, bool grad_parameters) {
  const Gradients g = backward(add_rms_norm_backward_call(grad, grad_residual, residual_out, weight, eps, offset),
                               grad_x, grad_parameters);
  return {g.x, g.weight};
}
std::tuple<at::Tensor, at::Tensor> add_layer_norm(const at::Tensor& x, const at::Tensor& residual,
                                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                                  double eps) {
  auto [out, residual_out] = forward(add_layer_norm_call(x, residual, weight, bias, eps));
  return {out, residual_out};
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> add_layer_norm_backward(
    const at::Tensor& grad, const OptionalTensor& grad_residual, const at::Tensor& residual_out,
    const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool grad_x, bool grad_parameters) {
  const Gradients g = backward(add_layer_norm_backward_call(grad, grad_residual, residual_out, weight, bias, eps),
                               grad_x, grad_parameters);
  return {g.x, g.weight, g.bias};
}
at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const OptionalTensor& weight, double eps,
                          bool norm_before_gate) {
  return forward(gated_rms_norm_call(x, gate, weight, eps, norm_before_gate)).out;
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_rms_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                       const at::Tensor& gate,
                                                                       const OptionalTensor& weight, double eps,
                                                                       bool norm_before_gate, bool grad_x,
                                                                       bool grad_parameters) {
  const Gradients g =
      backward(gated_rms_norm_backward_call(grad, x, gate, weight, eps, norm_before_gate), grad_x, grad_parameters);
  return {g.x, g.gate, g.weight};
}
at::Tensor modulated_norm(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                          const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms) {
  return forward(modulated_norm_call(x, scale, shift, weight, bias, eps, rms)).out;
}
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> modulated_norm_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, const OptionalTensor& weight,
    const OptionalTensor& bias, double eps, bool rms, bool grad_x, bool grad_parameters) {
  const Gradients g =
      backward(modulated_norm_backward_call(grad, x, scale, weight, bias, eps, rms), grad_x, grad_parameters);
  return {g.x, g.scale, g.shift, g.weight, g.bias};
}

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "rms_norm(Tensor x, Tensor? weight, float eps, *, float offset=0.0) -> Tensor", rms_norm,
            Gradient::registered);
  define_op(m,
            "rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps, float offset, bool grad_x, bool "
            "grad_parameters) -> (Tensor, Tensor)",
            rms_norm_backward);
  define_op(m, "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor", layer_norm,
            Gradient::registered);
  define_op(m,
            "layer_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, float eps, bool grad_x, bool "
            "grad_parameters) -> (Tensor, Tensor, Tensor)",
            layer_norm_backward);
  define_op(
      m, "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps, *, float offset=0.0) -> (Tensor, Tensor)",
      add_rms_norm, Gradient::registered);
  define_op(m,
            "add_rms_norm_backward(Tensor grad, Tensor? grad_residual, Tensor residual_out, Tensor? weight, float eps, "
            "float offset, bool grad_x, bool grad_parameters) -> (Tensor, Tensor)",
            add_rms_norm_backward);
  define_op(m, "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)",
            add_layer_norm, Gradient::registered);
  define_op(m,
            "add_layer_norm_backward(Tensor grad, Tensor? grad_residual, Tensor residual_out, Tensor? weight, Tensor? "
            "bias, float eps, bool grad_x, bool grad_parameters) -> (Tensor, Tensor, Tensor)",
            add_layer_norm_backward);
  define_op(m,
            "gated_rms_norm(Tensor x, Tensor gate, Tensor? weight, float eps, *, bool norm_before_gate=True) -> Tensor",
            gated_rms_norm, Gradient::registered);
  define_op(m,
            "gated_rms_norm_backward(Tensor grad, Tensor x, Tensor gate, Tensor? weight, float eps, bool "
            "norm_before_gate, bool grad_x, bool grad_parameters) -> (Tensor, Tensor, Tensor)",
            gated_rms_norm_backward);
  define_op(m,
            "modulated_norm(Tensor x, Tensor scale, Tensor shift, Tensor? weight, Tensor? bias, float eps, *, bool "
            "rms=False) -> Tensor",
            modulated_norm, Gradient::registered);
  define_op(m,
            "modulated_norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor? weight, Tensor? bias, float eps, "
            "bool rms, bool grad_x, bool grad_parameters) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
            modulated_norm_backward);
}

}  // namespace mpsk
