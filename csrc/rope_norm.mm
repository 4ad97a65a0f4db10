// mpsk::qk_norm_rope and its backward op: the norm of each head and its rotation in one launch, any strides read where
// they are.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <tuple>
#include <vector>

#include "norm_common.h"
#include "rope_common.h"
#include "rope_params.h"
#include "rope_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

struct QkNorm {
  Rope rope;
  const OptionalTensor& q_weight;
  const OptionalTensor& k_weight;
  double eps;
  double weight_offset;
};

void check_weight(const QkNorm& n, const char* name, const OptionalTensor& weight) {
  if (!weight) return;
  const Arg arg{n.rope.op, name, *weight};
  const at::Tensor& q = n.rope.q;
  check_device(arg, {n.rope.op, "q", q});
  require_type(weight->scalar_type() == q.scalar_type() || weight->scalar_type() == at::kFloat, n.rope.op, "expected ",
               name, " of dtype ", dtype_name(q), " to match q, or float32, got ", dtype_name(*weight));
  check_dim(arg, 1);
  check_size(arg, 0, q.sym_size(3), "to match q.size(3)");
}

void check(const QkNorm& n) {
  const char* op = n.rope.op;
  check(n.rope);
  require_supported(n.rope.q.sym_size(3).sym_le(+rope_norm_max_columns).expect_true(__FILE__, __LINE__), op,
                    "expected q.size(3) <= ", +rope_norm_max_columns, ", got ", n.rope.q.sym_size(3));
  check_weight(n, "q_weight", n.q_weight);
  check_weight(n, "k_weight", n.k_weight);
  require_value(n.rope.k || !n.k_weight, op, "expected no k_weight where there is no k");
  require_value(!n.rope.k || n.q_weight.has_value() == n.k_weight.has_value(), op,
                "expected both q_weight and k_weight, or neither");
  if (n.k_weight) check_same_dtype({op, "k_weight", *n.k_weight}, {op, "q_weight", *n.q_weight});
  require_value(finite_f32(n.eps) && n.eps >= 0, op, "expected an eps >= 0 that is finite in float32, got ", n.eps);
  require_value(finite_f32(n.weight_offset), op, "expected a weight_offset that is finite in float32, got ",
                n.weight_offset);
}

void check_grad(const char* op, const char* name, const at::Tensor& grad, const char* like_name,
                const at::Tensor& like) {
  const Arg arg{op, name, grad}, like_arg{op, like_name, like};
  check_device(arg, like_arg);
  check_same_dtype(arg, like_arg);
  check_dim(arg, 4);
  for (int64_t d = 0; d < 4; ++d) check_size(arg, d, like.sym_size(d), c10::str("to match ", like_name));
}

void check_backward(const QkNorm& n, const at::Tensor& grad_q, const OptionalTensor& grad_k) {
  check(n);
  check_grad(n.rope.op, "grad_q", grad_q, "q", n.rope.q);
  require_value(grad_k.has_value() == n.rope.k.has_value(), n.rope.op, "expected both k and grad_k, or neither");
  if (grad_k) check_grad(n.rope.op, "grad_k", *grad_k, "k", *n.rope.k);
}

// The quads of a head, as rope_norm.metal counts them.
int64_t quads_of(const Rope& rope) {
  const int64_t pairs = pairs_of(rope);
  return ceil_div(pairs, 4) + ceil_div(rope.q.size(3) - 2 * pairs, 4);
}

// Of a call with elements.
rope_norm_params params_of(const QkNorm& n) {
  const at::Tensor& q = n.rope.q;
  const OptionalTensor& k = n.rope.k;
  const char* op = n.rope.op;
  const int64_t columns = q.size(3), length = q.size(2), batches = q.size(0);
  const int64_t lanes =
      std::min<int64_t>(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(quads_of(n.rope)))), simd_width);
  const int64_t heads[] = {q.size(1), k ? k->size(1) : 0};
  const int64_t heads_per_unit =
      choose_rope(device().family, batches * (heads[0] + heads[1]) * length * lanes).heads_per_thread;
  const norm_scales scales(q, n.eps, columns);
  rope_norm_params params{
      .rotation = rotation_of(n.rope, false),
      .strides = {},
      .grad_strides = {},
      .weight_strides = {n.q_weight ? n.q_weight->stride(0) : 0, n.k_weight ? n.k_weight->stride(0) : 0},
      .heads = {narrow<uint32_t>(heads[0], op, "q.size(1)"), narrow<uint32_t>(heads[1], op, "k.size(1)")},
      .head_groups = {},
      .units = {},
      .parts = {},
      .length = narrow<uint32_t>(length, op, "q.size(2)"),
      .columns = static_cast<uint32_t>(columns),  // which is checked
      .lanes = static_cast<uint32_t>(lanes),
      .heads_per_unit = static_cast<uint32_t>(heads_per_unit),
      .weight_offset = static_cast<float>(n.weight_offset),
      .scale = static_cast<float>(scales.usual),
      .scale_large = static_cast<float>(scales.large),
      .eps = scales.eps_times(scales.usual),
      .eps_large = scales.eps_times(scales.large),
      .padding = 0};
  for (int i : {0, 1}) {
    const int64_t groups = ceil_div(heads[i], heads_per_unit);
    params.head_groups[i] = static_cast<uint32_t>(std::max<int64_t>(groups, 1));
    params.units[i] =
        narrow<uint32_t>(batches * groups * length, op, "q.size(0) times groups of heads times q.size(2)");
    params.parts[i] = static_cast<uint32_t>(ceil_div(params.units[i], rope_threads / lanes));
  }
  set_strides(params.strides[0], q);
  if (k) set_strides(params.strides[1], *k);
  return params;
}

bool in_vectors(const QkNorm& n, const std::vector<OptionalTensor>& others) {
  if (pairs_of(n.rope) % 4 != 0 || n.rope.q.size(3) % 4 != 0) return false;
  for (const OptionalTensor& tensor : others) {
    if (tensor && !in_packs(*tensor, 4)) return false;
  }
  return true;
}

// Whether the four entries of a quad do: interleaved, they are two and two.
bool table_in_vectors(const QkNorm& n, bool vectors) {
  return vectors && !n.rope.interleaved && table_in_packs(n.rope, 4);
}

bool weights_f32(const QkNorm& n) { return n.q_weight && n.q_weight->scalar_type() != n.rope.q.scalar_type(); }

void bind(Encoder& encoder, const QkNorm& n) {
  encoder.tensor(rope_buffer_q, n.rope.q);
  bind_if(encoder, rope_buffer_k, n.rope.k);
  bind_rotations(encoder, n.rope);
  bind_if(encoder, rope_buffer_q_weight, n.q_weight);
  bind_if(encoder, rope_buffer_k_weight, n.k_weight);
}

void dispatch(Encoder& encoder, const rope_norm_params& params) {
  const size_t groups = size_t{params.parts[0]} + params.parts[1], width = std::min<size_t>(groups, rope_grid_width);
  encoder.params(rope_buffer_params, params);
  encoder.dispatch({.x = width, .y = (groups + width - 1) / width}, {.x = rope_threads});
}

at::Tensor empty_like(const at::Tensor& tensor) { return at::empty(tensor.sizes(), tensor.options()); }

// The kernel `name` of the tile that the heads take. Gradients are the backward pass's.
std::shared_ptr<const Pipeline> rows_pipeline(const char* name, const QkNorm& n, bool vectors, bool grad_x,
                                              bool grad_weights) {
  return pipeline(c10::str(name, dtype_suffix(n.rope.q), choose_rope_norm(device().family, quads_of(n.rope)).tile),
                  {{rope_constant_k, "k", n.rope.k.has_value()},
                   {rope_constant_table, "table", has_table(n.rope)},
                   {rope_constant_table_f32, "table_f32", has_table_f32(n.rope)},
                   {rope_constant_positions_i32, "positions_i32", has_positions(n.rope, at::kInt)},
                   {rope_constant_positions_i64, "positions_i64", has_positions(n.rope, at::kLong)},
                   {rope_constant_interleaved, "interleaved", n.rope.interleaved},
                   {rope_constant_table_packs, "table_packs", table_in_vectors(n, vectors)},
                   {rope_constant_vectors, "vectors", vectors},
                   {rope_constant_weights, "weights", n.q_weight.has_value()},
                   {rope_constant_weights_f32, "weights_f32", weights_f32(n)},
                   {rope_constant_grad_x, "grad_x", grad_x},
                   {rope_constant_grad_weights, "grad_weights", grad_weights}});
}

std::tuple<at::Tensor, at::Tensor> forward(const QkNorm& n) {
  check(n);
  const at::Tensor& q = n.rope.q;
  const OptionalTensor& k = n.rope.k;
  at::Tensor q_out = empty_like(q), k_out = k ? empty_like(*k) : none_like(q);
  if (q_out.numel() == 0 && k_out.numel() == 0) return {q_out, k_out};
  const rope_norm_params params = params_of(n);
  const bool vectors = in_vectors(n, {q, k, n.q_weight, n.k_weight});
  const auto kernel = rows_pipeline("rope_norm_rows_", n, vectors, false, false);
  launch(n.rope.op, [&](Encoder& encoder) {
    encoder.use(kernel);
    bind(encoder, n);
    encoder.tensor(rope_buffer_q_out, q_out);
    if (k) encoder.tensor(rope_buffer_k_out, k_out);
    dispatch(encoder, params);
  });
  return {q_out, k_out};
}

// Those that are not asked for, or do not exist, have shape (0,).
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients backward(const QkNorm& n, const at::Tensor& grad_q, const OptionalTensor& grad_k, bool grad_x,
                   bool grad_weights) {
  check_backward(n, grad_q, grad_k);
  const at::Tensor& q = n.rope.q;
  const OptionalTensor& k = n.rope.k;
  const auto wanted = [&](const OptionalTensor& tensor, bool asked) {
    return tensor && asked ? empty_like(*tensor) : none_like(q);
  };
  const at::Tensor of_q = wanted(q, grad_x), of_k = wanted(k, grad_x);
  const at::Tensor of_q_weight = wanted(n.q_weight, grad_weights), of_k_weight = wanted(n.k_weight, grad_weights);
  const Gradients gradients{of_q, of_k, of_q_weight, of_k_weight};
  grad_weights = grad_weights && n.q_weight;
  const bool rows = q.numel() > 0 || (k && k->numel() > 0);
  if (q.size(3) == 0 || (!rows && !grad_weights) || (!grad_x && !grad_weights)) return gradients;

  rope_norm_params params{};
  std::shared_ptr<const Pipeline> rows_kernel, weights_kernel;
  if (rows) {
    params = params_of(n);
    set_strides(params.grad_strides[0], grad_q);
    if (k) set_strides(params.grad_strides[1], *grad_k);
    const bool vectors = in_vectors(n, {q, k, n.q_weight, n.k_weight, grad_q, grad_k});
    rows_kernel = rows_pipeline("rope_norm_backward_", n, vectors, grad_x, grad_weights);
  }
  const int64_t columns = q.size(3);
  at::Tensor partials;
  if (grad_weights) {
    weights_kernel =
        pipeline(c10::str("rope_norm_weights_", dtype_suffix(*n.q_weight)), {{rope_constant_k, "k", k.has_value()}});
    partials = at::empty({int64_t{params.parts[0]} + params.parts[1], columns}, q.options().dtype(at::kFloat));
  }
  launch(n.rope.op, [&](Encoder& encoder) {
    if (rows_kernel) {
      encoder.use(rows_kernel);
      bind(encoder, n);
      encoder.tensor(rope_buffer_grad_q, grad_q);
      bind_if(encoder, rope_buffer_grad_k, grad_k);
      if (grad_x) encoder.tensor(rope_buffer_q_out, of_q);
      if (grad_x && k) encoder.tensor(rope_buffer_k_out, of_k);
      if (grad_weights) encoder.tensor(rope_buffer_partials, partials);
      dispatch(encoder, params);
    }
    if (!grad_weights) return;
    if (rows_kernel) encoder.barrier();  // publishes partials
    encoder.use(weights_kernel);
    encoder.tensor(rope_buffer_partials, partials);
    encoder.tensor(rope_buffer_grad_q_weight, of_q_weight);
    if (k) encoder.tensor(rope_buffer_grad_k_weight, of_k_weight);
    encoder.params(rope_buffer_params, rope_weights_params{.parts = {params.parts[0], params.parts[1]},
                                                           .columns = static_cast<uint32_t>(columns)});
    encoder.dispatch({.x = static_cast<size_t>(ceil_div(columns, rope_weight_columns)), .y = k ? 2u : 1u},
                     {.x = simd_width * rope_weight_simdgroups});
  });
  return gradients;
}

std::tuple<at::Tensor, at::Tensor> qk_norm_rope(const at::Tensor& q, const OptionalTensor& k,
                                                const OptionalTensor& q_weight, const OptionalTensor& k_weight,
                                                double eps, const OptionalTensor& cos, const OptionalTensor& sin,
                                                const OptionalTensor& positions, double weight_offset,
                                                c10::SymInt offset, double base, std::optional<int64_t> dims,
                                                bool interleaved, at::IntArrayRef sections, bool interleaved_sections) {
  return forward(
      {{"qk_norm_rope", q, k, cos, sin, positions, offset, base, dims, interleaved, sections, interleaved_sections},
       q_weight,
       k_weight,
       eps,
       weight_offset});
}

Gradients qk_norm_rope_backward(const at::Tensor& grad_q, const OptionalTensor& grad_k, const at::Tensor& q,
                                const OptionalTensor& k, const OptionalTensor& q_weight, const OptionalTensor& k_weight,
                                double eps, const OptionalTensor& cos, const OptionalTensor& sin,
                                const OptionalTensor& positions, double weight_offset, c10::SymInt offset, double base,
                                std::optional<int64_t> dims, bool interleaved, at::IntArrayRef sections,
                                bool interleaved_sections, bool grad_x, bool grad_weights) {
  return backward({{"qk_norm_rope_backward", q, k, cos, sin, positions, offset, base, dims, interleaved, sections,
                    interleaved_sections},
                   q_weight,
                   k_weight,
                   eps,
                   weight_offset},
                  grad_q, grad_k, grad_x, grad_weights);
}

}  // namespace

void check_qk_norm_rope(const at::Tensor& q, const OptionalTensor& k, const OptionalTensor& q_weight,
                        const OptionalTensor& k_weight, double eps, const OptionalTensor& cos,
                        const OptionalTensor& sin, const OptionalTensor& positions, double weight_offset,
                        const c10::SymInt& offset, double base, std::optional<int64_t> dims, bool interleaved,
                        const std::vector<int64_t>& sections, bool interleaved_sections) {
  check({{"qk_norm_rope", q, k, cos, sin, positions, offset, base, dims, interleaved, sections, interleaved_sections},
         q_weight,
         k_weight,
         eps,
         weight_offset});
}

void check_qk_norm_rope_backward(const at::Tensor& grad_q, const OptionalTensor& grad_k, const at::Tensor& q,
                                 const OptionalTensor& k, const OptionalTensor& q_weight,
                                 const OptionalTensor& k_weight, double eps, const OptionalTensor& cos,
                                 const OptionalTensor& sin, const OptionalTensor& positions, double weight_offset,
                                 const c10::SymInt& offset, double base, std::optional<int64_t> dims, bool interleaved,
                                 const std::vector<int64_t>& sections, bool interleaved_sections) {
  check_backward({{"qk_norm_rope_backward", q, k, cos, sin, positions, offset, base, dims, interleaved, sections,
                   interleaved_sections},
                  q_weight,
                  k_weight,
                  eps,
                  weight_offset},
                 grad_q, grad_k);
}

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  const std::string tensors = "Tensor? q_weight, Tensor? k_weight, float eps, ";
  const std::string options =
      "float weight_offset=0.0, SymInt offset=0, float base=10000.0, int? dims=None, bool interleaved=False, "
      "int[] sections=[], bool interleaved_sections=False";
  define_op(m,
            ("qk_norm_rope(Tensor q, Tensor? k, " + tensors +
             "Tensor? cos=None, Tensor? sin=None, Tensor? positions=None, *, " + options + ") -> (Tensor, Tensor)")
                .c_str(),
            qk_norm_rope, Gradient::registered);
  define_op(m,
            ("qk_norm_rope_backward(Tensor grad_q, Tensor? grad_k, Tensor q, Tensor? k, " + tensors +
             "Tensor? cos, Tensor? sin, Tensor? positions, *, " + options +
             ", bool grad_x=True, bool grad_weights=True) -> (Tensor, Tensor, Tensor, Tensor)")
                .c_str(),
            qk_norm_rope_backward);
}

}  // namespace mpsk
