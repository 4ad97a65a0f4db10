// mpsk::attention: checks, the choice of a kernel, its launch.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>

#include "attention_params.h"
#include "attention_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

constexpr const char* op = "attention";
constexpr int64_t vector_bytes = 16;

attention_strides strides(const at::Tensor& t) {
  return {.batch = t.stride(0), .head = t.stride(1), .row = t.stride(2), .column = t.stride(3)};
}

bool takes_vectors(const at::Tensor& t) {
  const int64_t alignment = vector_bytes / t.element_size();
  bool aligned = t.stride(3) == 1 && t.storage_offset() % alignment == 0;
  for (int64_t dim = 0; dim < 3; ++dim) aligned &= t.size(dim) == 1 || t.stride(dim) % alignment == 0;
  return aligned;
}

}  // namespace

void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool /*is_causal*/,
                     std::optional<double> scale) {
  const Arg q_arg{op, "q", q}, k_arg{op, "k", k}, v_arg{op, "v", v};
  check_device(q_arg);
  check_device(k_arg, q_arg);
  check_device(v_arg, q_arg);
  check_dtype(q_arg);
  check_same_dtype(k_arg, q_arg);
  check_same_dtype(v_arg, q_arg);
  for (const Arg& arg : {q_arg, k_arg, v_arg}) check_dim(arg, 4);
  check_size(k_arg, 0, q.sym_size(0), "to match q.size(0)");
  check_size(k_arg, 3, q.sym_size(3), "to match q.size(3)");
  check_size(v_arg, 0, q.sym_size(0), "to match q.size(0)");
  check_size(v_arg, 1, k.sym_size(1), "to match k.size(1)");
  check_size(v_arg, 2, k.sym_size(2), "to match k.size(2)");
  check_size(v_arg, 3, q.sym_size(3), "to match q.size(3)");
  const c10::SymInt q_heads = q.sym_size(1), k_heads = k.sym_size(1);
  const bool no_k_heads = TORCH_GUARD_OR_FALSE(k_heads.sym_eq(0));
  require_value(no_k_heads ? q_heads.sym_eq(0) : (q_heads % k_heads).sym_eq(0), op,
                "expected q.size(1) to be a multiple of k.size(1) == ", k_heads, ", got ", q_heads);
  const int64_t d = q.sym_size(3).guard_int(__FILE__, __LINE__);
  std::string head_dims;
  for (const int64_t head_dim : attention_head_dims)
    head_dims += (head_dims.empty() ? "" : ", ") + std::to_string(head_dim);
  require_supported(std::ranges::find(attention_head_dims, d) != std::end(attention_head_dims), op,
                    "expected q.size(3) in (", head_dims, "), got ", d);
  require_value(!scale || finite_f32(*scale), op, "expected a scale that is finite in float32, got ",
                scale.value_or(0));
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal,
                     std::optional<double> scale) {
  check_attention(q, k, v, is_causal, scale);
  const auto empty_like_q = [&] { return at::empty(q.sizes(), q.options(), at::MemoryFormat::Contiguous); };
  if (q.numel() == 0) return empty_like_q();

  const int64_t d = q.size(3);
  // A grid has fewer than 2^32 threads along each dimension: 1 for each of a batch, 4 for a head, 32 for a block.
  constexpr int64_t max_sizes[] = {(int64_t{1} << 32) - 1, (int64_t{1} << 30) - 1, ((int64_t{1} << 27) - 1) * 32};
  for (int64_t dim = 0; dim < 3; ++dim) {
    require_value(q.size(dim) <= max_sizes[dim], op, "expected q.size(", dim, ") <= ", max_sizes[dim], ", got ",
                  q.size(dim));
  }
  const size_t blocks = (static_cast<size_t>(q.size(2)) + attention_block_q - 1) / attention_block_q;
  const attention_params params{
      .q = strides(q),
      .k = strides(k),
      .v = strides(v),
      .q_length = static_cast<uint64_t>(q.size(2)),
      .k_length = static_cast<uint64_t>(k.size(2)),
      .q_heads_per_k_head = static_cast<uint32_t>(q.size(1) / k.size(1)),
      .scale_log4 =
          static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(d))) * (0.5 * std::numbers::log2e))};
  const bool vectors = takes_vectors(q) && takes_vectors(k) && takes_vectors(v);
  const auto kernel =
      pipeline(c10::str("attention_flash_", dtype_suffix(q), "_d", d, "_bk", choose_attention(device().family, d).bk),
               {{attention_constant_causal, "causal", is_causal}, {attention_constant_vectors, "vectors", vectors}});
  at::Tensor out = empty_like_q();
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(attention_buffer_q, q);
    encoder.tensor(attention_buffer_k, k);
    encoder.tensor(attention_buffer_v, v);
    encoder.tensor(attention_buffer_out, out);
    encoder.params(attention_buffer_params, params);
    encoder.dispatch({.x = blocks, .y = static_cast<size_t>(q.size(1)), .z = static_cast<size_t>(q.size(0))},
                     {.x = 32, .y = 4});
  });
  return out;
}

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "attention(Tensor q, Tensor k, Tensor v, *, bool is_causal=False, float? scale=None) -> Tensor",
            attention);
}

}  // namespace mpsk
