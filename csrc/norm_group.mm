// mpsk::group_norm, on x with channels first or last; samples, channels and positions may each have any stride.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <tuple>

#include "norm_common.h"
#include "norm_params.h"
#include "runtime/check.h"
#include "runtime/register.h"

namespace mpsk {
namespace {

struct GroupNorm {
  const char* op;
  const at::Tensor& x;
  int64_t groups;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  double eps;
  bool silu;
  OptionalTensor grad = {};
};

void check_channels(const GroupNorm& n, const char* name, const OptionalTensor& tensor) {
  if (!tensor) return;
  const Arg x{n.op, "x", n.x}, arg{n.op, name, *tensor};
  check_device(arg, x);
  require_type(tensor->scalar_type() == n.x.scalar_type() || tensor->scalar_type() == at::kFloat, n.op, "expected ",
               name, " of dtype ", dtype_name(n.x), " to match x, or float32, got ", dtype_name(*tensor));
  check_dim(arg, 1);
  check_size(arg, -1, n.x.sym_size(1), "to match x.size(1)");
}

void check(const GroupNorm& n) {
  const Arg x{n.op, "x", n.x};
  check_device(x);
  check_dtype(x);
  check_dim_between(x, 2, norm_max_dims + 1);
  require_value(n.groups >= 1, n.op, "expected num_groups >= 1, got ", n.groups);
  require_value((n.x.sym_size(1) % n.groups).sym_eq(0), n.op, "expected x.size(1) to be a multiple of num_groups, ",
                n.groups, ", got ", n.x.sym_size(1));
  if (n.grad) {
    const Arg grad{n.op, "grad", *n.grad};
    check_device(grad, x);
    check_same_dtype(grad, x);
    check_dim(grad, n.x.dim());
    for (int64_t d = 0; d < n.x.dim(); ++d) {
      check_size(grad, d, n.x.sym_size(d), c10::str("to match x.size(", d, ")"));
    }
  }
  check_channels(n, "weight", n.weight);
  check_channels(n, "bias", n.bias);
  if (n.weight && n.bias) check_same_dtype({n.op, "bias", *n.bias}, {n.op, "weight", *n.weight});
  require_value(finite_f32(n.eps) && n.eps >= 0, n.op, "expected an eps >= 0 that is finite in float32, got ", n.eps);
}

// Where positions are: all dimensions from the third on, which one stride must describe.
group_norm_strides strides_of(const char* op, const char* name, const at::Tensor& tensor) {
  group_norm_strides strides{.sample = tensor.stride(0), .channel = tensor.stride(1), .position = 0};
  int64_t positions = 1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (positions == 1) {
      strides.position = tensor.stride(d);
    } else {
      require_supported(tensor.stride(d) == strides.position * positions, op, "expected the dimensions of ", name,
                        " from the third on to have one stride, got strides ", tensor.strides(), " of shape ",
                        tensor.sizes(), "; pass ", name, ".contiguous()");
    }
    positions *= tensor.size(d);
  }
  return strides;
}

bool is_channels_last(const at::Tensor& x) {
  return !x.is_contiguous() && ((x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) ||
                                (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)));
}

at::Tensor empty_like_x(const at::Tensor& x) {
  const auto format = !is_channels_last(x) ? at::MemoryFormat::Contiguous
                      : x.dim() == 4       ? at::MemoryFormat::ChannelsLast
                                           : at::MemoryFormat::ChannelsLast3d;
  return at::empty(x.sizes(), x.options().memory_format(format));
}

bool strides_in_vectors(const group_norm_strides& s, const at::Tensor& tensor, bool last) {
  return (last ? s.channel : s.position) == 1 && (last ? s.position : s.channel) % 4 == 0 && s.sample % 4 == 0 &&
         tensor.storage_offset() % 4 == 0;
}

// What the launches of a call share.
struct Launch {
  Launch(const GroupNorm& n, const at::Tensor& out) {
    const int64_t channels = n.x.size(1), in_group = channels / n.groups;
    const int64_t positions = n.x.numel() / (n.x.size(0) * channels), columns = in_group * positions;
    narrow<int32_t>(columns, n.op, "x.numel() / (x.size(0) * num_groups)");
    const int64_t part = std::min<int64_t>(columns, norm_part_elements), parts = ceil_div(columns, part);
    const int64_t rows = n.x.size(0) * n.groups;
    narrow<uint32_t>(rows * parts, n.op, "x.numel() / 16384");
    narrow<uint32_t>(n.x.size(0) * channels, n.op, "x.size(0) * x.size(1)");
    const norm_scales scales(n.x, n.eps, columns);
    const auto mean_scale = [](double scale, int64_t count) {
      return static_cast<float>(std::ldexp(scale, 32) / static_cast<double>(count));
    };
    const int64_t last = columns - (parts - 1) * part;
    const int64_t simdgroups = ceil_div(part, 16 * simd_width);
    const auto channels_inner = [](const group_norm_strides& s) { return s.channel < s.position; };
    params = {
        .x = strides_of(n.op, "x", n.x),
        .grad = n.grad ? strides_of(n.op, "grad", *n.grad) : group_norm_strides{},
        .out = strides_of(n.op, "out", out),
        .weight_stride = n.weight ? n.weight->stride(0) : 0,
        .bias_stride = n.bias ? n.bias->stride(0) : 0,
        .rows = static_cast<uint32_t>(rows),
        .groups = static_cast<uint32_t>(n.groups),
        .group_channels = static_cast<uint32_t>(in_group),
        .positions = static_cast<uint32_t>(positions),
        .columns = static_cast<uint32_t>(columns),
        .part_elements = static_cast<uint32_t>(part),
        .parts_per_row = static_cast<uint32_t>(parts),
        .simdgroups_per_row = static_cast<uint32_t>(simdgroups),
        .rows_per_threadgroup = static_cast<uint32_t>(
            std::clamp<int64_t>(threads_per_threadgroup / (simdgroups * simd_width), 1, rows * parts)),
        .scale = static_cast<float>(scales.usual),
        .scale_large = static_cast<float>(scales.large),
        .large = scales.threshold,
        .eps = scales.eps_times(scales.usual),
        .eps_large = scales.eps_times(scales.large),
        .mean_scale = mean_scale(scales.usual, part),
        .mean_scale_large = mean_scale(scales.large, part),
        .last_mean_scale = mean_scale(scales.usual, last),
        .last_mean_scale_large = mean_scale(scales.large, last),
    };
    channels_last = positions > 1 && channels_inner(params.x);
    vectors = (channels_last ? in_group : positions) % 4 == 0 && strides_in_vectors(params.x, n.x, channels_last) &&
              strides_in_vectors(params.out, out, channels_last) &&
              (!n.grad || strides_in_vectors(params.grad, *n.grad, channels_last));
  }

  // Where the statistics of a row come from.
  enum class From { x, parts, statistics };

  std::shared_ptr<const Pipeline> kernel(const GroupNorm& n, const char* name, bool parts_out, From from) const {
    // The channels that a part touches.
    const int64_t channels = channels_last
                                 ? params.group_channels
                                 : std::min(params.group_channels, (params.part_elements - 1) / params.positions + 2);
    const bool staged =
        (n.weight || n.bias) && !parts_out && channels * params.rows_per_threadgroup <= norm_staged_channels;
    return pipeline(c10::str(name, "_", dtype_suffix(n.x)),
                    {{norm_constant_centered, "centered", true},
                     {norm_constant_channels_last, "channels_last", channels_last},
                     {norm_constant_weight, "weight", n.weight.has_value()},
                     {norm_constant_bias, "bias", n.bias.has_value()},
                     {norm_constant_parameters_f32, "parameters_f32", is_f32_beside(n.x, n.weight, n.bias)},
                     {norm_constant_silu, "silu", n.silu},
                     {norm_constant_vectors, "vectors", vectors},
                     {norm_constant_parts_out, "parts_out", parts_out},
                     {norm_constant_out, "out", !parts_out},
                     {norm_constant_statistics_in, "statistics_in", from == From::statistics},
                     {norm_constant_parts_in, "parts_in", from == From::parts},
                     {norm_constant_staged, "staged", staged}});
  }

  int64_t parts() const { return int64_t{params.rows} * params.parts_per_row; }

  void dispatch(Encoder& encoder, int64_t groups, int64_t simdgroups) const {
    const size_t width = std::min<size_t>(static_cast<size_t>(groups), norm_grid_width);
    encoder.dispatch({.x = width, .y = (static_cast<size_t>(groups) + width - 1) / width},
                     {.x = static_cast<size_t>(simdgroups * simd_width)});
  }
  void dispatch_parts(Encoder& encoder) const {
    dispatch(encoder, ceil_div(parts(), params.rows_per_threadgroup),
             int64_t{params.simdgroups_per_row} * params.rows_per_threadgroup);
  }
  void bind(Encoder& encoder, const GroupNorm& n) const {
    encoder.tensor(norm_buffer_x, n.x);
    bind_if(encoder, norm_buffer_weight, n.weight);
    bind_if(encoder, norm_buffer_bias, n.bias);
    encoder.params(norm_buffer_params, params);
  }

  // The sums of the parts.
  void sums_of_parts(Encoder& encoder, const GroupNorm& n, const std::shared_ptr<const Pipeline>& part_kernel,
                     const at::Tensor& of_parts) const {
    encoder.use(part_kernel);
    bind(encoder, n);
    encoder.tensor(norm_buffer_parts, of_parts);
    dispatch_parts(encoder);
    encoder.barrier();
  }
  // The statistics of the rows, in two dispatches.
  void statistics(Encoder& encoder, const GroupNorm& n, const std::shared_ptr<const Pipeline>& part_kernel,
                  const std::shared_ptr<const Pipeline>& merge_kernel, const at::Tensor& of_parts,
                  const at::Tensor& of_rows) const {
    sums_of_parts(encoder, n, part_kernel, of_parts);
    encoder.use(merge_kernel);
    encoder.tensor(norm_buffer_parts, of_parts);
    encoder.tensor(norm_buffer_statistics, of_rows);
    encoder.params(norm_buffer_params, params);
    dispatch(encoder, params.rows, 1);
    encoder.barrier();
  }
  at::Tensor empty_floats(const at::Tensor& x, int64_t rows, int64_t width) const {
    return at::empty({rows, width}, x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  }

  group_norm_params params;
  bool channels_last;
  bool vectors;
};

constexpr int64_t statistics_floats = 5;  // norm_statistics

}  // namespace

void check_group_norm(const at::Tensor& x, int64_t num_groups, const OptionalTensor& weight, const OptionalTensor& bias,
                      double eps) {
  check({"group_norm", x, num_groups, weight, bias, eps, false});
}
void check_group_norm_backward(const at::Tensor& grad, const at::Tensor& x, int64_t num_groups,
                               const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  check({"group_norm_backward", x, num_groups, weight, bias, eps, false, grad});
}

at::Tensor group_norm(const at::Tensor& x, int64_t num_groups, const OptionalTensor& weight, const OptionalTensor& bias,
                      double eps, bool silu) {
  const GroupNorm n{"group_norm", x, num_groups, weight, bias, eps, silu};
  check(n);
  at::Tensor out = empty_like_x(x);
  if (x.numel() == 0) return out;
  const Launch shared(n, out);
  const int64_t parts_of_row = shared.params.parts_per_row;
  const Launch::From from = parts_of_row == 1                   ? Launch::From::x
                            : parts_of_row <= norm_merged_parts ? Launch::From::parts
                                                                : Launch::From::statistics;
  auto kernel = shared.kernel(n, "norm_group_part", false, from);
  std::shared_ptr<const Pipeline> part_kernel, merge_kernel;
  at::Tensor of_parts, of_rows;
  if (from != Launch::From::x) {
    part_kernel = shared.kernel(n, "norm_group_part", true, Launch::From::x);
    of_parts = shared.empty_floats(x, shared.parts(), 4);
  }
  if (from == Launch::From::statistics) {
    merge_kernel = pipeline("norm_group_merge", {{norm_constant_centered, "centered", true}});
    of_rows = shared.empty_floats(x, shared.params.rows, statistics_floats);
  }
  launch(n.op, [&](Encoder& encoder) {
    if (from == Launch::From::parts) shared.sums_of_parts(encoder, n, part_kernel, of_parts);
    if (from == Launch::From::statistics) shared.statistics(encoder, n, part_kernel, merge_kernel, of_parts, of_rows);
    encoder.use(kernel);
    shared.bind(encoder, n);
    if (from == Launch::From::parts) encoder.tensor(norm_buffer_parts_in, of_parts);
    if (from == Launch::From::statistics) encoder.tensor(norm_buffer_statistics, of_rows);
    encoder.tensor(norm_buffer_out, out);
    shared.dispatch_parts(encoder);
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                   int64_t num_groups, const OptionalTensor& weight,
                                                                   const OptionalTensor& bias, double eps, bool silu,
                                                                   bool grad_x, bool grad_parameters) {
  const GroupNorm n{"group_norm_backward", x, num_groups, weight, bias, eps, silu, grad};
  check(n);
  const auto parameter = [&](const OptionalTensor& tensor) {
    return tensor && grad_parameters ? at::empty(tensor->sizes(), tensor->options()) : none_like(x);
  };
  at::Tensor of_x = empty_like_x(x), of_weight = parameter(weight), of_bias = parameter(bias);
  if (!grad_x) of_x = none_like(x);
  grad_parameters = grad_parameters && (weight || bias);
  const int64_t channels = x.size(1), samples = x.size(0);
  if (channels == 0 || (!grad_x && !grad_parameters) || (x.numel() == 0 && !grad_parameters)) {
    return {of_x, of_weight, of_bias};
  }
  std::optional<Launch> shared;  // none where there are no elements: gradients of parameters are zeros then
  std::shared_ptr<const Pipeline> part_kernel, merge_kernel, sums_kernel, grad_kernel, parameters_kernel;
  at::Tensor of_parts, of_rows;
  const at::Tensor sums = at::empty({x.numel() == 0 ? 0 : samples, 2, channels},
                                    x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  if (x.numel() != 0) {
    shared.emplace(n, grad_x ? of_x : x);
    part_kernel = shared->kernel(n, "norm_group_part", true, Launch::From::x);
    merge_kernel = pipeline("norm_group_merge", {{norm_constant_centered, "centered", true}});
    sums_kernel = shared->kernel(n, "norm_group_sums", false, Launch::From::statistics);
    if (grad_x) grad_kernel = shared->kernel(n, "norm_group_grad", false, Launch::From::statistics);
    of_parts = shared->empty_floats(x, shared->parts(), 4);
    of_rows = shared->empty_floats(x, shared->params.rows, statistics_floats);
  }
  norm_params of_columns{};
  if (grad_parameters) {
    parameters_kernel = pipeline(c10::str("norm_parameters_", dtype_suffix(x)),
                                 {{norm_constant_weight, "weight", weight.has_value()},
                                  {norm_constant_bias, "bias", bias.has_value()},
                                  {norm_constant_parameters_f32, "parameters_f32", is_f32_beside(x, weight, bias)},
                                  {norm_constant_modulation, "modulation", false},
                                  {norm_constant_modulation_f32, "modulation_f32", false},
                                  {norm_constant_two_sums, "two_sums", true}});
    of_columns.columns = narrow<uint32_t>(channels, n.op, "x.size(1)");
    of_columns.samples = 1;
    of_columns.parts_per_sample = shared ? static_cast<uint32_t>(samples) : 0;
    of_columns.simdgroups_per_row =
        static_cast<uint32_t>(std::clamp<int64_t>(samples, 1, norm_row_threads / simd_width));
  }
  launch(n.op, [&](Encoder& encoder) {
    if (shared) {
      shared->statistics(encoder, n, part_kernel, merge_kernel, of_parts, of_rows);
      encoder.use(sums_kernel);
      shared->bind(encoder, n);
      encoder.tensor(norm_buffer_grad, grad);
      encoder.tensor(norm_buffer_statistics, of_rows);
      encoder.tensor(norm_buffer_partials, sums);
      const int64_t positions = shared->params.positions;
      const bool last = shared->channels_last;
      group_norm_params params = shared->params;
      params.simdgroups_per_row = static_cast<uint32_t>(
          std::clamp<int64_t>(last ? ceil_div(positions, 16) : ceil_div(positions, 4 * simd_width), 1, last ? 32 : 8));
      encoder.params(norm_buffer_params, params);
      shared->dispatch(encoder, samples * (last ? ceil_div(channels, simd_width) : channels),
                       params.simdgroups_per_row);
      encoder.barrier();
    }
    if (grad_kernel) {
      encoder.use(grad_kernel);
      shared->bind(encoder, n);
      encoder.tensor(norm_buffer_grad, grad);
      encoder.tensor(norm_buffer_statistics, of_rows);
      encoder.tensor(norm_buffer_partials, sums);
      encoder.tensor(norm_buffer_grad_x, of_x);
      shared->dispatch_parts(encoder);
    }
    if (!grad_parameters) return;
    encoder.use(parameters_kernel);
    encoder.tensor(norm_buffer_partials, sums);
    bind_if(encoder, norm_buffer_weight, weight);
    bind_if(encoder, norm_buffer_bias, bias);
    if (weight) encoder.tensor(norm_buffer_grad_weight, of_weight);
    if (bias) encoder.tensor(norm_buffer_grad_bias, of_bias);
    encoder.params(norm_buffer_params, of_columns);
    const size_t groups = static_cast<size_t>(ceil_div(channels, norm_parameter_columns));
    const size_t width = std::min<size_t>(groups, norm_grid_width);
    encoder.dispatch({.x = width, .y = (groups + width - 1) / width},
                     {.x = size_t{of_columns.simdgroups_per_row} * simd_width});
  });
  return {of_x, of_weight, of_bias};
}

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m,
            "group_norm(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, *, bool silu=False) -> "
            "Tensor",
            group_norm, Gradient::registered);
  define_op(m,
            "group_norm_backward(Tensor grad, Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, bool "
            "silu, bool grad_x, bool grad_parameters) -> (Tensor, Tensor, Tensor)",
            group_norm_backward);
}

}  // namespace mpsk
