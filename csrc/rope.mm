// mpsk::rope: q and k in one launch, any strides read where they are.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <tuple>
#include <vector>

#include "rope_common.h"
#include "rope_params.h"
#include "rope_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {

bool in_packs(const at::Tensor& tensor, int64_t pack) {
  if (tensor.stride(-1) != 1 || tensor.storage_offset() % pack != 0) return false;
  for (int64_t d = 0; d < tensor.dim() - 1; ++d) {
    if (tensor.size(d) != 1 && tensor.stride(d) % pack != 0) return false;
  }
  return true;
}

namespace {

// A dimension of batches, of which there may be one for all.
void check_batches(const Arg& arg, int64_t dim, const c10::SymInt& batches) {
  if (!TORCH_GUARD_OR_FALSE(arg.tensor.sym_size(dim).sym_eq(1))) check_size(arg, dim, batches, "to match q.size(0)");
}

}  // namespace

void check(const Rope& rope) {
  const auto& [op, q, k, cos, sin, positions, offset, base, dims, interleaved, sections, interleaved_sections] = rope;
  const Arg q_arg{op, "q", q};
  check_device(q_arg);
  check_dtype(q_arg);
  check_dim(q_arg, 4);
  if (k) {
    const Arg k_arg{op, "k", *k};
    check_device(k_arg, q_arg);
    check_same_dtype(k_arg, q_arg);
    check_dim(k_arg, 4);
    for (int64_t d : {0, 2, 3}) check_size(k_arg, d, q.sym_size(d), c10::str("to match q.size(", d, ")"));
  }
  const c10::SymInt columns = q.sym_size(3), rotated = dims ? c10::SymInt(*dims) : columns;
  require_value(rotated.sym_ge(0), op, "expected dims >= 0, got ", rotated);
  require_value((rotated % 2).sym_eq(0), op, "expected an even count of dims, got ", rotated);
  require_value(rotated.sym_le(columns), op, "expected dims <= q.size(3), which is ", columns, ", got ", rotated);
  require_value(cos.has_value() == sin.has_value(), op, "expected both cos and sin, or neither");
  if (positions) {
    const Arg arg{op, "positions", *positions};
    check_device(arg, q_arg);
    require_type(positions->scalar_type() == at::kInt || positions->scalar_type() == at::kLong, op,
                 "expected positions of dtype int32 or int64, got ", dtype_name(*positions));
    if (sections.empty()) {
      check_dim_between(arg, 1, 2);
    } else {
      check_dim(arg, 3);
      check_size(arg, 0, static_cast<int64_t>(sections.size()), "to match sections");
    }
    check_size(arg, -1, q.sym_size(2), "to match q.size(2)");
    if (positions->dim() > 1) check_batches(arg, -2, q.sym_size(0));
  }
  require_value(!interleaved_sections || !sections.empty(), op, "expected sections, to interleave");
  if (!sections.empty()) {
    require_value(positions.has_value(), op, "expected positions, of which each section has its own");
    require_value(!cos, op, "expected no sections where there are cos and sin");
    require_supported(sections.size() <= rope_max_sections, op, "expected at most ", +rope_max_sections,
                      " sections, got ", sections.size());
    int64_t pairs = 0;
    for (int64_t section : sections) {
      require_value(section >= 0, op, "expected sections >= 0, got ", section);
      pairs += section;
    }
    require_value((rotated / 2).sym_eq(pairs), op, "expected sections of ", rotated / 2, " pairs in all, got ", pairs);
    const int64_t count = static_cast<int64_t>(sections.size());
    for (int64_t s = 1; s < count && interleaved_sections; ++s) {
      const int64_t most = (pairs - s + count - 1) / count, section = sections[static_cast<size_t>(s)];
      require_value(section <= most, op, "expected at most ", most, " pairs in section ", s, " of ", count,
                    " interleaved ones, got ", section);
    }
  }
  if (!cos) {
    require_value(finite_f32(base) && base > 0, op, "expected a base > 0 that is finite in float32, got ", base);
    require_supported(rotated.sym_le(2 * rope_max_pairs).expect_true(__FILE__, __LINE__), op, "expected at most ",
                      2 * rope_max_pairs, " dims where there is no cos and sin, got ", rotated);
    return;
  }
  const Arg cos_arg{op, "cos", *cos}, sin_arg{op, "sin", *sin};
  for (const Arg& arg : {cos_arg, sin_arg}) {
    check_device(arg, q_arg);
    require_type(arg.tensor.scalar_type() == q.scalar_type() || arg.tensor.scalar_type() == at::kFloat, op, "expected ",
                 arg.name, " of dtype ", dtype_name(q), " to match q, or float32, got ", dtype_name(arg.tensor));
    check_dim_between(arg, 2, positions ? 2 : 3);
    if (arg.tensor.dim() == 3) check_batches(arg, 0, q.sym_size(0));
    const c10::SymInt entries = arg.tensor.sym_size(-1);
    if (interleaved || !TORCH_GUARD_OR_FALSE(entries.sym_eq(rotated))) {
      check_size(arg, -1, rotated / 2, interleaved ? "for interleaved pairs" : "or twice that, to match dims");
    }
  }
  check_same_dtype(sin_arg, cos_arg);
  check_dim(sin_arg, cos->dim());
  check_size(sin_arg, -2, cos->sym_size(-2), "to match cos");
  if (!positions) {
    require_value(offset.sym_ge(0), op, "expected an offset >= 0 where there are cos and sin, got ", offset);
    require_value((offset + q.sym_size(2)).sym_le(cos->sym_size(-2)), op,
                  "expected cos.size(-2) >= ", offset + q.sym_size(2), ", the offset and q.size(2), got ",
                  cos->sym_size(-2));
  }
}

void check_rope(const at::Tensor& q, const OptionalTensor& k, const OptionalTensor& cos, const OptionalTensor& sin,
                const OptionalTensor& positions, const c10::SymInt& offset, double base, std::optional<int64_t> dims,
                bool interleaved, const std::vector<int64_t>& sections, bool interleaved_sections) {
  check({"rope", q, k, cos, sin, positions, offset, base, dims, interleaved, sections, interleaved_sections});
}

int64_t pairs_of(const Rope& rope) { return rope.dims.value_or(rope.q.size(3)) / 2; }

rope_rotation rotation_of(const Rope& rope, bool inverse) {
  const int64_t pairs = pairs_of(rope);
  rope_rotation rotation{.frequencies = {},
                         .cos_strides = {},
                         .sin_strides = {},
                         .position_strides = {},
                         .offset = rope.offset.expect_int(),
                         .pair_sections = {},
                         .pairs = narrow<uint32_t>(pairs, rope.op, "dims / 2"),
                         .sections = static_cast<uint32_t>(rope.sections.size()),
                         .rows = rope.cos ? narrow<uint32_t>(rope.cos->size(-2), rope.op, "cos.size(-2)") : 0,
                         .direction = inverse ? -1.0f : 1.0f};
  if (rope.positions) set_strides(rotation.position_strides, *rope.positions);
  if (rope.cos) {
    set_strides(rotation.cos_strides, *rope.cos);
    set_strides(rotation.sin_strides, *rope.sin);
    return rotation;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const double turns =
        std::pow(rope.base, -static_cast<double>(i) / static_cast<double>(pairs)) / 2 / std::numbers::pi;
    rotation.frequencies[i] = static_cast<uint64_t>(std::ldexp(turns - std::floor(turns), 64));
  }
  const int64_t count = static_cast<int64_t>(rope.sections.size());
  int64_t section = 0, end = count > 0 ? rope.sections[0] : pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    if (rope.interleaved_sections) {  // in turns; what is left when the others are through belongs to the first
      section = i / count < rope.sections[static_cast<size_t>(i % count)] ? i % count : 0;
    } else {
      while (i >= end) end += rope.sections[static_cast<size_t>(++section)];
    }
    rotation.pair_sections[i / 16] |= static_cast<uint32_t>(section) << 2 * (i % 16);
  }
  return rotation;
}

bool has_table_f32(const Rope& rope) {
  return rope.cos && rope.cos->scalar_type() == at::kFloat && rope.q.scalar_type() != at::kFloat;
}
bool has_table(const Rope& rope) { return rope.cos && !has_table_f32(rope); }
bool has_positions(const Rope& rope, at::ScalarType type) {
  return rope.positions && rope.positions->scalar_type() == type;
}
bool table_in_packs(const Rope& rope, int64_t pack) {
  return rope.cos && in_packs(*rope.cos, pack) && in_packs(*rope.sin, pack);
}

void bind_rotations(Encoder& encoder, const Rope& rope) {
  const bool f32 = has_table_f32(rope), i32 = has_positions(rope, at::kInt);
  if (rope.cos) encoder.tensor(f32 ? rope_buffer_cos_f32 : rope_buffer_cos, *rope.cos);
  if (rope.sin) encoder.tensor(f32 ? rope_buffer_sin_f32 : rope_buffer_sin, *rope.sin);
  if (rope.positions) encoder.tensor(i32 ? rope_buffer_positions_i32 : rope_buffer_positions_i64, *rope.positions);
}

namespace {

std::tuple<at::Tensor, at::Tensor> rope(const at::Tensor& q, const OptionalTensor& k, const OptionalTensor& cos,
                                        const OptionalTensor& sin, const OptionalTensor& positions, c10::SymInt offset,
                                        double base, std::optional<int64_t> dims, bool interleaved,
                                        at::IntArrayRef sections, bool interleaved_sections, bool inverse) {
  const char* op = "rope";
  const Rope call{op, q, k, cos, sin, positions, offset, base, dims, interleaved, sections, interleaved_sections};
  check(call);
  at::Tensor q_out = at::empty(q.sizes(), q.options());
  at::Tensor k_out = at::empty(k ? k->sizes() : at::IntArrayRef{0}, q.options());
  if (q_out.numel() == 0 && k_out.numel() == 0) return {q_out, k_out};

  const int64_t columns = q.size(3), pairs = pairs_of(call), heads = q.size(1) + (k ? k->size(1) : 0);
  const int64_t pack = 16 / q.element_size();
  const bool packs = pairs % pack == 0 && columns % pack == 0 && in_packs(q, pack) && (!k || in_packs(*k, pack));
  const int64_t table_pack = has_table_f32(call) ? 4 : pack;
  const int64_t width = packs ? pack : 1, chunks = (columns - pairs) / width;
  const int64_t threads = narrow<uint32_t>(q.size(2) * chunks, op, "q.size(2) times chunks of q.size(3)");
  const rope_choice& choice = choose_rope(device().family, q.size(0) * heads * threads);
  rope_params params{
      .rotation = rotation_of(call, inverse),
      .strides = {},
      .heads = {narrow<uint32_t>(q.size(1), op, "q.size(1)"), k ? narrow<uint32_t>(k->size(1), op, "k.size(1)") : 0},
      .length = narrow<uint32_t>(q.size(2), op, "q.size(2)"),
      .columns = static_cast<uint32_t>(columns),  // at most `threads`, doubled
      .chunks = static_cast<uint32_t>(chunks),
      .heads_per_thread = static_cast<uint32_t>(choice.heads_per_thread)};
  narrow<int32_t>(columns, op, "q.size(3)");
  set_strides(params.strides[0], q);
  if (k) set_strides(params.strides[1], *k);

  auto kernel = pipeline(c10::str("rope_rotate_", dtype_suffix(q)),
                         {{rope_constant_k, "k", k.has_value()},
                          {rope_constant_table, "table", has_table(call)},
                          {rope_constant_table_f32, "table_f32", has_table_f32(call)},
                          {rope_constant_positions_i32, "positions_i32", has_positions(call, at::kInt)},
                          {rope_constant_positions_i64, "positions_i64", has_positions(call, at::kLong)},
                          {rope_constant_interleaved, "interleaved", interleaved},
                          {rope_constant_packs, "packs", packs},
                          {rope_constant_table_packs, "table_packs", packs && table_in_packs(call, table_pack)}});
  const int64_t groups = (heads + choice.heads_per_thread - 1) / choice.heads_per_thread;
  const Size group{.x = static_cast<size_t>(std::min<int64_t>(threads, rope_threads)),
                   .y = static_cast<size_t>(std::clamp<int64_t>(rope_threads / threads, 1, groups))};
  const auto ceil_div = [](int64_t a, size_t b) { return (static_cast<size_t>(a) + b - 1) / b; };
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(rope_buffer_q, q);
    if (k) encoder.tensor(rope_buffer_k, *k);
    bind_rotations(encoder, call);
    encoder.tensor(rope_buffer_q_out, q_out);
    if (k) encoder.tensor(rope_buffer_k_out, k_out);
    encoder.params(rope_buffer_params, params);
    encoder.dispatch(
        {.x = ceil_div(threads, group.x), .y = ceil_div(groups, group.y), .z = static_cast<size_t>(q.size(0))}, group);
  });
  return {q_out, k_out};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m,
            "rope(Tensor q, Tensor? k=None, Tensor? cos=None, Tensor? sin=None, Tensor? positions=None, *, "
            "SymInt offset=0, float base=10000.0, int? dims=None, bool interleaved=False, int[] sections=[], "
            "bool interleaved_sections=False, bool inverse=False) -> (Tensor, Tensor)",
            rope, Gradient::registered);
}

}  // namespace mpsk
