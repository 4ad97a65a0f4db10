#include "matmul_product.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>
#include <c10/util/StringUtil.h>
#include <c10/util/accumulate.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "matmul_params.h"
#include "matmul_select.h"
#include "runtime/check.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

constexpr int64_t vector_bytes = 16;
// Rows of tiles walked together: about 60 threadgroups run at a time on 10 cores, and 8x8 tiles of out need the fewest
// tiles of a and b. Unmeasured.
constexpr uint32_t band = 8;
// A grid has fewer than 2^32 threads along each dimension: 32 a tile along x, fewer than 2 a product along z.
constexpr int64_t max_tiles = (int64_t{1} << 27) - 1, max_batch = (int64_t{1} << 31) - 1;

// Elements between rows of an operand of matmul_tensor, whose offsets within a tile have 32 bits.
constexpr int64_t max_tensor_pitch = (int64_t{1} << 31) / matmul_tensor_k - 1;

// Whether torch lets products of float32 round their operands to 11 bits of significand: torch.backends.fp32_precision
// says so, or where that is not set, torch.set_float32_matmul_precision, which sets this for CUDA and for the CPU. Its
// own getter throws where somebody has set only one of the two.
bool allows_tf32() {
  using enum at::Float32Precision;
  const auto precision = [](at::Float32Backend backend, at::Float32Op op) {
    return at::globalContext().float32Precision(backend, op);
  };
  const auto rounds = [](at::Float32Precision precision) { return precision == TF32 || precision == BF16; };
  const at::Float32Precision all = precision(at::Float32Backend::GENERIC, at::Float32Op::ALL);
  if (all != NONE) return rounds(all);
  return rounds(precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL)) &&
         rounds(precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL));
}

// One axis of a matrix.
struct extent {
  int64_t size, stride;
};

extent axis(const at::Tensor& t, int64_t from_last) {
  return from_last <= t.dim() ? extent{t.size(-from_last), t.stride(-from_last)} : extent{1, 0};
}

// Whether loads move along `x` rather than `y`: along the shorter stride that leads anywhere.
bool moves_along(extent x, extent y) {
  const auto cost = [](extent axis) {
    return axis.size == 1 || axis.stride == 0 ? std::numeric_limits<int64_t>::max() : axis.stride;
  };
  return cost(x) < cost(y);
}

// A batch dimension of the product.
struct batch_dim {
  int64_t size;
  int64_t a_stride = 0, b_stride = 0, residual_stride = 0, out_stride = 0;
};
using batch_dims = c10::SmallVector<batch_dim, 8>;

// The batch dimensions from `first` to `last` from the last of the tensors, outermost first, broadcast, with neighbours
// merged where one stride describes all operands.
batch_dims broadcast(const at::Tensor& a, const at::Tensor& b, const at::Tensor& residual, int64_t first,
                     int64_t last) {
  batch_dims dims;
  for (int64_t i = first; i >= last; --i) {
    const extent a_axis = axis(a, i), b_axis = axis(b, i);
    const extent r_axis = residual.defined() ? axis(residual, i) : extent{1, 0};
    const batch_dim dim{.size = a_axis.size == 1 ? b_axis.size : a_axis.size,
                        .a_stride = a_axis.size == 1 ? 0 : a_axis.stride,
                        .b_stride = b_axis.size == 1 ? 0 : b_axis.stride,
                        .residual_stride = r_axis.size == 1 ? 0 : r_axis.stride};
    if (dim.size == 1) continue;
    if (!dims.empty() && dims.back().a_stride == dim.size * dim.a_stride &&
        dims.back().b_stride == dim.size * dim.b_stride &&
        dims.back().residual_stride == dim.size * dim.residual_stride) {
      dims.back() = {dims.back().size * dim.size, dim.a_stride, dim.b_stride, dim.residual_stride};
    } else {
      dims.push_back(dim);
    }
  }
  return dims;
}

// Whether tiles of 64 rows, or of 64 k, hold less that is none of `more` elements than of `fewer`.
bool pads_less(int64_t more, int64_t fewer) {
  const auto padded = [](int64_t size) { return double(matmul_ceil_div(size, 64) * 64) / double(size); };
  return more > fewer && padded(more) < padded(fewer);
}

// The last plans of this thread, by problem: to compare all rows of the table takes microseconds.
const matmul_plan& plan_of(const matmul_problem& problem) {
  constexpr size_t places = 256;
  thread_local std::array<std::optional<std::pair<matmul_problem, matmul_plan>>, places> known;
  auto& place = known[c10::get_hash(problem.m, problem.n, problem.k, problem.batch, problem.bytes) % places];
  if (!place || place->first != problem) place.emplace(problem, plan_matmul(problem));
  return place->second;
}

std::string kernel_name(const matmul_kernel& kernel, std::string_view dtype, bool gated) {
  const std::string tile = c10::str(dtype, "_bm", kernel.bm, "_bn", kernel.bn);
  const std::string with_k = c10::str(tile, "_bk", kernel.bk);
  const std::string simdgroups = c10::str("_wm", kernel.wm, "_wn", kernel.wn);
  switch (kernel.is) {
    case matmul_kernel::tile:
      return c10::str("matmul_tile_", with_k, simdgroups, "_wk", kernel.wk);
    case matmul_kernel::gated:
      return c10::str("matmul_gated_", with_k, simdgroups, "_wk", kernel.wk);
    case matmul_kernel::packed:
      return c10::str("matmul_packed_", with_k);
    case matmul_kernel::skinny_k:
      return c10::str("matmul_skinny_k_", dtype, "_r", kernel.bm, "_p", gated ? 2 : 1);
    case matmul_kernel::skinny_n:
      return c10::str("matmul_skinny_n_", dtype, "_r", kernel.bm);
    case matmul_kernel::tensor:
      return c10::str("matmul_tensor_", tile, simdgroups);
    case matmul_kernel::tensor_gated:
      return c10::str("matmul_tensor_gated_", tile, simdgroups);
    case matmul_kernel::tensor_gathered:
      return c10::str("matmul_tensor_gathered_", tile, simdgroups);
  }
  return "";
}

std::shared_ptr<const Pipeline> sum_kernel(std::string_view dtype, bool bias, bool residual, bool preactivation,
                                           bool gated, bool activation) {
  return pipeline(c10::str("matmul_sum_", dtype), {{matmul_constant_partial, "partial", false},
                                                   {matmul_constant_bias, "bias", bias},
                                                   {matmul_constant_residual, "residual", residual},
                                                   {matmul_constant_preactivation, "preactivation", preactivation},
                                                   {matmul_constant_gated, "gated", gated},
                                                   {matmul_constant_activation, "activation", activation}});
}

// A grid of a thread for each element; x and y together, as x alone may not hold it.
void dispatch_elements(Encoder& encoder, int64_t elements) {
  const int64_t groups = matmul_ceil_div(elements, matmul_threads), width = std::min<int64_t>(groups, 1 << 20);
  encoder.dispatch({.x = static_cast<size_t>(width), .y = static_cast<size_t>(matmul_ceil_div(groups, width))},
                   {.x = matmul_threads});
}

}  // namespace

at::Tensor launch_product(const matmul_product& product) {
  const char* op = product.op;
  const at::Tensor &a = product.a, &b = product.b, &residual = product.residual;
  const auto options = a.options().memory_format(at::MemoryFormat::Contiguous);
  const int64_t outputs = c10::multiply_integers(product.sizes);
  if (outputs == 0) return at::empty(product.sizes, options);
  const bool gated = product.second_b.defined() && !product.second_a.defined();
  const bool grouped = product.offsets.defined(), grouped_rows = grouped && !product.grouped_k;

  const int64_t m_axis = product.a_transposed ? 1 : 2, n_axis = product.b_transposed ? 2 : 1;
  extent a_m = axis(a, m_axis), a_k = axis(a, 3 - m_axis), b_k = axis(b, 3 - n_axis), b_n = axis(b, n_axis);
  extent second_a_m{}, second_a_k{}, second_k{}, second_n{};
  if (product.second_a.defined()) {
    second_a_m = axis(product.second_a, m_axis);
    second_a_k = axis(product.second_a, 3 - m_axis);
  }
  if (product.second_b.defined()) {
    second_k = axis(product.second_b, 3 - n_axis);
    second_n = axis(product.second_b, n_axis);
  }
  if (product.indices.defined()) (product.grouped_k ? a_k : a_m).size = product.indices.size(0);
  const int64_t groups = grouped ? product.offsets.size(0) : 0;
  extent residual_m{1, 0}, residual_n{1, 0};
  if (residual.defined()) {
    residual_m = axis(residual, 2);
    residual_n = axis(residual, 1);
  }
  batch_dims dims, terms;
  if (!grouped) {
    dims = broadcast(a, b, residual, std::max(a.dim(), b.dim()), 3 + product.summed);
    terms = broadcast(a, b, residual, 2 + product.summed, 3);
  }
  int64_t out_stride = a_m.size * b_n.size;
  for (size_t d = dims.size(); d-- > 0; out_stride *= dims[d].size) dims[d].out_stride = out_stride;
  // A batch that shares b is further rows of a where one stride reaches them: tiles fill up, b is read once.
  const auto continues = [](extent rows, int64_t stride) {
    return rows.size == 1 || stride == rows.size * rows.stride;
  };
  while (!dims.empty() && dims.back().b_stride == 0 && continues(a_m, dims.back().a_stride) &&
         (!residual.defined() || continues({a_m.size, residual_m.stride}, dims.back().residual_stride))) {
    if (a_m.size == 1) {
      a_m.stride = dims.back().a_stride;
      residual_m.stride = dims.back().residual_stride;
    }
    a_m.size *= dims.back().size;
    dims.pop_back();
  }
  extent out_m{a_m.size, b_n.size}, out_n{b_n.size, 1};
  // Where none does, one that tiles pad less changes places with the rows.
  for (batch_dim& dim : dims) {
    if (dim.b_stride != 0 || !pads_less(dim.size, a_m.size) || moves_along(a_m, a_k)) continue;
    a_m.size = out_m.size = std::exchange(dim.size, a_m.size);
    std::swap(a_m.stride, dim.a_stride);
    std::swap(residual_m.stride, dim.residual_stride);
    std::swap(out_m.stride, dim.out_stride);
  }
  dims.erase(std::remove_if(dims.begin(), dims.end(), [](const batch_dim& dim) { return dim.size == 1; }), dims.end());
  if (a_k.size == 0 || std::ranges::any_of(terms, [](const batch_dim& term) { return term.size == 0; })) {
    a_k.size = b_k.size = 0;
    terms.clear();
  }
  // Terms of a sum are further k where one stride of each operand reaches them.
  while (!terms.empty() && continues(a_k, terms.back().a_stride) && continues(b_k, terms.back().b_stride)) {
    if (a_k.size == 1) {
      a_k.stride = terms.back().a_stride;
      b_k.stride = terms.back().b_stride;
    }
    a_k.size *= terms.back().size;
    b_k.size = a_k.size;
    terms.pop_back();
  }
  for (batch_dim& term : terms) {
    if (!pads_less(term.size, a_k.size) || moves_along(a_k, a_m) || moves_along(b_k, b_n)) continue;
    a_k.size = b_k.size = std::exchange(term.size, a_k.size);
    std::swap(a_k.stride, term.a_stride);
    std::swap(b_k.stride, term.b_stride);
  }
  int64_t term_count = 1;
  for (const batch_dim& term : terms) term_count *= term.size;
  require_supported(term_count <= max_batch, op, "expected at most ", max_batch, " products in a sum, got ",
                    term_count);
  const bool summed = !terms.empty();
  if (product.grouped_k) dims.push_back({.size = groups, .out_stride = a_m.size * b_n.size});
  require_supported(dims.size() + terms.size() <= matmul_max_batch_dims, op, "expected at most ",
                    +matmul_max_batch_dims, " batch dimensions that no single stride describes, got ",
                    dims.size() + terms.size(), "; pass contiguous operands");
  const int64_t batch = grouped_rows ? 1 : outputs / (a_m.size * b_n.size);
  require_supported(batch <= max_batch, op, "expected at most ", max_batch, " products in a batch, got ", batch);

  // Few columns are few rows of the transposed product.
  extent bias_m{1, 0}, bias_n{1, product.bias.defined() ? product.bias.stride(0) : 0};
  at::Tensor left = a, right = b;
  const bool swapped = !grouped && !product.second_b.defined() && b_n.size < a_m.size && b_n.size <= 16;
  if (swapped) {
    std::swap(a_m, b_n);
    std::swap(a_k, b_k);
    std::swap(out_m, out_n);
    std::swap(bias_m, bias_n);
    std::swap(residual_m, residual_n);
    std::swap(left, right);
    for (batch_dim& dim : dims) std::swap(dim.a_stride, dim.b_stride);
    for (batch_dim& term : terms) std::swap(term.a_stride, term.b_stride);
  }

  const int64_t bytes = a.element_size(), alignment = vector_bytes / bytes;
  bool a_along_m = moves_along(a_m, a_k);
  // Indices are looked up once for each row of a tile.
  if (product.indices.defined()) a_along_m = product.grouped_k;
  const bool b_along_k = moves_along(b_k, b_n);
  const auto takes_vectors = [&](const at::Tensor& t, extent along, extent across, int64_t batch_dim::* stride) {
    const auto aligned = [&](const batch_dim& dim) { return dim.*stride % alignment == 0; };
    return along.stride == 1 && (across.size == 1 || across.stride % alignment == 0) &&
           t.storage_offset() % alignment == 0 && std::ranges::all_of(dims, aligned) &&
           std::ranges::all_of(terms, aligned);
  };
  const extent a_along = a_along_m ? a_m : a_k;
  extent a_across = a_along_m ? a_k : a_m;
  if (product.indices.defined()) a_across.size = a.size(0);  // any of its rows, whatever their number
  bool a_vectors = takes_vectors(left, a_along, a_across, &batch_dim::a_stride);
  bool b_vectors = takes_vectors(right, b_along_k ? b_k : b_n, b_along_k ? b_n : b_k, &batch_dim::b_stride);
  if (product.second_a.defined()) {
    a_vectors &= takes_vectors(product.second_a, a_along_m ? second_a_m : second_a_k,
                               a_along_m ? second_a_k : second_a_m, &batch_dim::a_stride);
  }
  if (product.second_b.defined()) {
    b_vectors &= takes_vectors(product.second_b, b_along_k ? second_k : second_n, b_along_k ? second_n : second_k,
                               &batch_dim::b_stride);
  }
  // A group begins anywhere along m, or along k.
  if (grouped_rows) {
    a_vectors &= !a_along_m;
    b_vectors &= b.stride(0) % alignment == 0;
  }
  if (product.grouped_k) {
    a_vectors &= a_along_m;
    b_vectors &= !b_along_k;
  }

  const auto fits_tensors = [](extent along, extent across) {
    return along.stride == 1 && across.stride > 0 && across.stride <= max_tensor_pitch;
  };
  const bool tensors =
      has_tensor_units() && b_vectors &&
      (product.indices.defined() || (a_vectors && fits_tensors(a_along, a_across))) &&
      fits_tensors(b_along_k ? b_k : b_n, b_along_k ? b_n : b_k) &&
      (!product.second_a.defined() ||
       fits_tensors(a_along_m ? second_a_m : second_a_k, a_along_m ? second_a_k : second_a_m)) &&
      (!second_k.size || fits_tensors(b_along_k ? second_k : second_n, b_along_k ? second_n : second_k)) &&
      (a.scalar_type() != at::kFloat || allows_tf32());
  const matmul_problem problem{.family = device().family,
                               .cores = device().cores,
                               .bytes = bytes,
                               .a_along_m = a_along_m,
                               .b_along_k = b_along_k,
                               .m = grouped_rows ? matmul_ceil_div(a_m.size, std::max<int64_t>(groups, 1)) : a_m.size,
                               .n = b_n.size,
                               .k = product.grouped_k ? a_k.size / groups : a_k.size * term_count,
                               .term_k = summed ? a_k.size : 0,
                               .batch = grouped_rows ? std::max<int64_t>(groups, 1) : batch,
                               .gated = gated,
                               .only_tiles = grouped || product.second_a.defined() || summed,
                               .grouped = grouped,
                               .gathered = product.indices.defined(),
                               .tensors = tensors};
  const matmul_plan& plan = plan_of(problem);
  const matmul_kernel& kernel = plan.choice->use;
  // The last tile of each group, and of the rows after the last group, may be filled in part.
  const int64_t tiles_m = grouped_rows ? a_m.size / kernel.bm + groups + 1 : plan.tiles_m;
  const int64_t tiles_n = plan.tiles_n, splits = plan.splits;
  // Kernels that make tiles find splits along x, the others along y.
  const bool along_x = makes_tiles(kernel);
  const int64_t columns = plan.whole_tiles_n + (tiles_n - plan.whole_tiles_n) * (along_x ? splits : 1);
  require_supported(columns <= max_tiles / tiles_m, op, "expected at most ", max_tiles, " tiles of ", kernel.bm, "x",
                    kernel.bn, " in a product, got ", tiles_m, " x ", tiles_n);
  const int64_t split_from = std::min(plan.whole_tiles_n * kernel.bn, b_n.size);
  const int64_t split_outputs = batch * a_m.size * (b_n.size - split_from);

  matmul_params params{.m = static_cast<uint64_t>(a_m.size),
                       .n = static_cast<uint64_t>(b_n.size),
                       .k = static_cast<uint64_t>(a_k.size),
                       .split_from = static_cast<uint64_t>(split_from),
                       .k_per_split = static_cast<uint64_t>(plan.k_per_split / (summed ? a_k.size : 1)),
                       .a_stride_m = a_m.stride,
                       .a_stride_k = a_k.stride,
                       .b_stride_k = b_k.stride,
                       .b_stride_n = b_n.stride,
                       .second_a_stride_m = second_a_m.stride,
                       .second_a_stride_k = second_a_k.stride,
                       .second_b_stride_k = second_k.stride,
                       .second_b_stride_n = second_n.stride,
                       .out_stride_m = out_m.stride,
                       .out_stride_n = out_n.stride,
                       .bias_stride_m = bias_m.stride,
                       .bias_stride_n = bias_n.stride,
                       .residual_stride_m = residual_m.stride,
                       .residual_stride_n = residual_n.stride,
                       .a_batch_strides = {},
                       .b_batch_strides = {},
                       .residual_batch_strides = {},
                       .out_batch_strides = {},
                       .batch_sizes = {},
                       .batch_dims = static_cast<uint32_t>(dims.size()),
                       .batch = static_cast<uint32_t>(batch),
                       .splits = static_cast<uint32_t>(splits),
                       .tiles_m = static_cast<uint32_t>(tiles_m),
                       .tiles_n = static_cast<uint32_t>(tiles_n),
                       .whole_tiles_n = static_cast<uint32_t>(plan.whole_tiles_n),
                       .band = band,
                       .activation = product.activation,
                       .groups = static_cast<uint32_t>(groups),
                       .a_rows = static_cast<uint32_t>(product.indices.defined() ? a.size(0) : 0),
                       .term_dims = static_cast<uint32_t>(terms.size()),
                       .terms = static_cast<uint32_t>(term_count)};
  std::ranges::reverse(dims);
  std::ranges::reverse(terms);
  dims.append(terms.begin(), terms.end());
  for (size_t d = 0; d < dims.size(); ++d) {
    params.a_batch_strides[d] = dims[d].a_stride;
    params.b_batch_strides[d] = dims[d].b_stride;
    params.residual_batch_strides[d] = dims[d].residual_stride;
    params.out_batch_strides[d] = dims[d].out_stride;
    params.batch_sizes[d] = static_cast<uint32_t>(dims[d].size);  // at most max_batch
  }
  if (grouped_rows) params.b_batch_strides[0] = b.stride(0);

  const bool partial = splits > 1, finishes = split_from > 0, activates = product.activation != activation_none;
  const auto named = [&](const std::string& name) {
    return pipeline(name,
                    {{matmul_constant_a_along_m, "a_along_m", a_along_m},
                     {matmul_constant_b_along_k, "b_along_k", b_along_k},
                     {matmul_constant_a_vectors, "a_vectors", a_vectors},
                     {matmul_constant_b_vectors, "b_vectors", b_vectors},
                     {matmul_constant_partial, "partial", partial},
                     {matmul_constant_bias, "bias", finishes && product.bias.defined()},
                     {matmul_constant_residual, "residual", finishes && residual.defined()},
                     {matmul_constant_preactivation, "preactivation", finishes && product.preactivation.defined()},
                     {matmul_constant_second_a, "second_a", product.second_a.defined()},
                     {matmul_constant_second_b, "second_b", product.second_b.defined()},
                     {matmul_constant_offsets, "offsets", grouped},
                     {matmul_constant_grouped_k, "grouped_k", product.grouped_k},
                     {matmul_constant_gathered, "gathered", product.indices.defined()},
                     {matmul_constant_gated, "gated", gated},
                     {matmul_constant_activation, "activation", finishes && activates},
                     {matmul_constant_summed, "summed", summed}});
  };
  const at::Tensor out = at::empty(product.sizes, options);
  const std::string_view dtype = dtype_suffix(a);
  const auto multiply = named(kernel_name(kernel, dtype, gated));
  std::shared_ptr<const Pipeline> sum;
  at::Tensor partials;
  if (partial) {
    sum = sum_kernel(dtype, product.bias.defined(), residual.defined(), product.preactivation.defined(), gated,
                     activates);
    partials = at::empty({splits * (gated ? 2 : 1) * split_outputs}, options.dtype(at::kFloat));
  }
  launch(op, [&](Encoder& encoder) {
    const auto finish = [&] {
      encoder.tensor(matmul_buffer_out, out);
      encoder.params(matmul_buffer_params, params);
      if (product.bias.defined()) encoder.tensor(matmul_buffer_bias, product.bias);
      if (residual.defined()) encoder.tensor(matmul_buffer_residual, residual);
      if (product.preactivation.defined()) {
        encoder.tensor(matmul_buffer_preactivation, product.preactivation);
        encoder.tensor(matmul_buffer_up, gated ? product.up : product.preactivation);
      }
    };
    encoder.use(multiply);
    encoder.tensor(matmul_buffer_a, left);
    encoder.tensor(matmul_buffer_b, right);
    if (partial) encoder.tensor(matmul_buffer_partials, partials);
    if (product.second_a.defined()) encoder.tensor(matmul_buffer_second_a, product.second_a);
    if (product.second_b.defined()) encoder.tensor(matmul_buffer_second_b, product.second_b);
    if (grouped) encoder.tensor(matmul_buffer_offsets, product.offsets);
    if (product.indices.defined()) encoder.tensor(matmul_buffer_indices, product.indices);
    finish();
    encoder.dispatch({.x = static_cast<size_t>(tiles_m * columns),
                      .y = static_cast<size_t>(along_x ? 1 : splits),
                      .z = static_cast<size_t>(matmul_ceil_div(batch, kernel.packs))},
                     {.x = 32, .y = static_cast<size_t>(kernel.wm * kernel.wn * kernel.wk * kernel.packs)});
    if (!partial) return;
    encoder.barrier();
    encoder.use(sum);
    encoder.tensor(matmul_buffer_partials, partials);
    finish();
    dispatch_elements(encoder, split_outputs);
  });
  return out;
}

void launch_sum(const char* op, const at::Tensor& partials, const at::Tensor& out) {
  if (out.numel() == 0) return;
  matmul_params params{};
  params.m = 1;
  params.n = params.out_stride_m = out.numel();
  params.out_stride_n = 1;
  params.batch = 1;
  params.splits = static_cast<uint32_t>(partials.numel() / out.numel());
  const auto kernel = sum_kernel(dtype_suffix(out), false, false, false, false, false);
  launch(op, [&](Encoder& encoder) {
    encoder.barrier();  // partials may have been written by a dispatch of the same op
    encoder.use(kernel);
    encoder.tensor(matmul_buffer_out, out);
    encoder.params(matmul_buffer_params, params);
    encoder.tensor(matmul_buffer_partials, partials);
    dispatch_elements(encoder, out.numel());
  });
}

activation_kind check_activation(const char* op, std::string_view name) {
  static constexpr std::pair<std::string_view, activation_kind> kinds[] = {{"none", activation_none},
                                                                           {"relu", activation_relu},
                                                                           {"gelu", activation_gelu},
                                                                           {"gelu_tanh", activation_gelu_tanh},
                                                                           {"silu", activation_silu}};
  const auto* found = std::ranges::find(kinds, name, &std::pair<std::string_view, activation_kind>::first);
  require_value(found != std::end(kinds), op, "expected activation none, relu, gelu, gelu_tanh or silu, got ", name);
  return found->second;
}

}  // namespace mpsk
