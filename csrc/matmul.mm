// mpsk::matmul: checks, the choice of a kernel, its launch.
#include <ATen/ops/empty.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>
#include <c10/util/StringUtil.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "matmul_params.h"
#include "matmul_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

constexpr const char* op = "matmul";
constexpr int64_t vector_bytes = 16;
// Rows of tiles walked together: about 60 threadgroups run at a time on 10 cores, and 8x8 tiles of out need the fewest
// tiles of a and b. Unmeasured.
constexpr uint32_t band = 8;

// One axis of an operand.
struct extent {
  int64_t size, stride;
};

// Whether loads move along `x` rather than `y`: along the shorter stride that leads anywhere.
bool moves_along(extent x, extent y) {
  const auto cost = [](extent axis) {
    return axis.size == 1 || axis.stride == 0 ? std::numeric_limits<int64_t>::max() : axis.stride;
  };
  return cost(x) < cost(y);
}

// A batch dimension of the product.
struct batch_dim {
  int64_t size, a_stride, b_stride;
};

// The batch dimensions, outermost first, broadcast, with neighbours merged where one stride describes both.
c10::SmallVector<batch_dim, 8> batch_dims(const at::Tensor& a, const at::Tensor& b) {
  c10::SmallVector<batch_dim, 8> dims;
  for (int64_t i = std::max(a.dim(), b.dim()); i > 2; --i) {
    const auto axis = [i](const at::Tensor& t) {
      return i <= t.dim() ? extent{t.size(-i), t.stride(-i)} : extent{1, 0};
    };
    const extent a_axis = axis(a), b_axis = axis(b);
    const batch_dim dim{.size = a_axis.size == 1 ? b_axis.size : a_axis.size,
                        .a_stride = a_axis.size == 1 ? 0 : a_axis.stride,
                        .b_stride = b_axis.size == 1 ? 0 : b_axis.stride};
    if (dim.size == 1) continue;
    if (!dims.empty() && dims.back().a_stride == dim.size * dim.a_stride &&
        dims.back().b_stride == dim.size * dim.b_stride) {
      dims.back() = {dims.back().size * dim.size, dim.a_stride, dim.b_stride};
    } else {
      dims.push_back(dim);
    }
  }
  return dims;
}

}  // namespace

// Returns the sizes of the product.
std::vector<c10::SymInt> check_matmul(const at::Tensor& a, const at::Tensor& b) {
  const Arg a_arg{op, "a", a}, b_arg{op, "b", b};
  check_device(a_arg);
  check_device(b_arg, a_arg);
  check_dtype(a_arg);
  check_same_dtype(b_arg, a_arg);
  check_dim_between(a_arg, 1, 64);
  check_dim_between(b_arg, 1, 64);
  check_size(b_arg, b.dim() == 1 ? -1 : -2, a.sym_size(-1), "to match a.size(-1)");
  std::vector<c10::SymInt> sizes;
  for (int64_t i = std::max(a.dim(), b.dim()); i > 2; --i) {
    const c10::SymInt a_size = i <= a.dim() ? a.sym_size(-i) : 1, b_size = i <= b.dim() ? b.sym_size(-i) : 1;
    if (TORCH_GUARD_OR_FALSE(a_size.sym_eq(1))) {
      sizes.push_back(b_size);
    } else if (TORCH_GUARD_OR_FALSE(b_size.sym_eq(1))) {
      sizes.push_back(a_size);
    } else {
      require_value(b_size.sym_eq(a_size), op, "expected b.size(", -i, ") == ", a_size, " or 1 to match a.size(", -i,
                    "), got ", b_size);
      sizes.push_back(a_size);
    }
  }
  if (a.dim() > 1) sizes.push_back(a.sym_size(-2));
  if (b.dim() > 1) sizes.push_back(b.sym_size(-1));
  return sizes;
}

at::Tensor matmul(const at::Tensor& a_arg, const at::Tensor& b_arg) {
  const std::vector<c10::SymInt> symbolic_sizes = check_matmul(a_arg, b_arg);
  const at::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(symbolic_sizes);
  const int64_t outputs = c10::multiply_integers(sizes);
  if (outputs == 0) return at::empty(sizes, a_arg.options());
  const at::Tensor a = a_arg.dim() == 1 ? a_arg.unsqueeze(0) : a_arg;
  const at::Tensor b = b_arg.dim() == 1 ? b_arg.unsqueeze(1) : b_arg;

  extent a_m{a.size(-2), a.stride(-2)};
  const extent a_k{a.size(-1), a.stride(-1)}, b_k{b.size(-2), b.stride(-2)}, b_n{b.size(-1), b.stride(-1)};
  auto dims = batch_dims(a, b);
  // A batch that shares b is further rows of a where one stride reaches them: tiles fill up, b is read once.
  while (!dims.empty() && dims.back().b_stride == 0 &&
         (a_m.size == 1 || dims.back().a_stride == a_m.size * a_m.stride)) {
    a_m = {a_m.size * dims.back().size, a_m.size == 1 ? dims.back().a_stride : a_m.stride};
    dims.pop_back();
  }
  require_supported(dims.size() <= matmul_max_batch_dims, op, "expected at most ", +matmul_max_batch_dims,
                    " batch dimensions that no single stride describes, got ", dims.size(),
                    "; pass a.contiguous() and b.contiguous()");

  const bool a_along_m = moves_along(a_m, a_k), b_along_k = moves_along(b_k, b_n);
  const int64_t alignment = vector_bytes / a.element_size();
  const auto takes_vectors = [&](const at::Tensor& t, extent along, extent across, int64_t batch_dim::* stride) {
    return along.stride == 1 && (across.size == 1 || across.stride % alignment == 0) &&
           t.storage_offset() % alignment == 0 &&
           std::ranges::all_of(dims, [&](const batch_dim& dim) { return dim.*stride % alignment == 0; });
  };
  const bool a_vectors = takes_vectors(a, a_along_m ? a_m : a_k, a_along_m ? a_k : a_m, &batch_dim::a_stride);
  const bool b_vectors = takes_vectors(b, b_along_k ? b_k : b_n, b_along_k ? b_n : b_k, &batch_dim::b_stride);

  const matmul_tile tile = choose_matmul(device().family, a_m.size, b_n.size, outputs).use;
  const int64_t tiles_m = (a_m.size + tile.bm - 1) / tile.bm, tiles_n = (b_n.size + tile.bn - 1) / tile.bn;
  // A grid has fewer than 2^32 threads along each dimension: 32 a tile along x, 2 a batch along z.
  constexpr int64_t max_tiles = (int64_t{1} << 27) - 1, max_batch = (int64_t{1} << 31) - 1;
  require_supported(tiles_n <= max_tiles / tiles_m, op, "expected at most ", max_tiles, " tiles of ", tile.bm, "x",
                    tile.bn, " in a product, got ", tiles_m, " x ", tiles_n);
  const int64_t batch = outputs / (a_m.size * b_n.size);
  require_supported(batch <= max_batch, op, "expected at most ", max_batch, " products in a batch, got ", batch);

  matmul_params params{.m = static_cast<uint64_t>(a_m.size),
                       .n = static_cast<uint64_t>(b_n.size),
                       .k = static_cast<uint64_t>(a_k.size),
                       .a_stride_m = a_m.stride,
                       .a_stride_k = a_k.stride,
                       .b_stride_k = b_k.stride,
                       .b_stride_n = b_n.stride,
                       .a_batch_strides = {},
                       .b_batch_strides = {},
                       .batch_sizes = {},
                       .batch_dims = static_cast<uint32_t>(dims.size()),
                       .tiles_m = static_cast<uint32_t>(tiles_m),
                       .tiles_n = static_cast<uint32_t>(tiles_n),
                       .band = band};
  std::ranges::reverse(dims);
  for (size_t d = 0; d < dims.size(); ++d) {
    params.a_batch_strides[d] = dims[d].a_stride;
    params.b_batch_strides[d] = dims[d].b_stride;
    params.batch_sizes[d] = static_cast<uint32_t>(dims[d].size);  // at most max_batch
  }

  const auto kernel =
      pipeline(c10::str("matmul_tile_", dtype_suffix(a), "_bm", tile.bm, "_bn", tile.bn, "_bk", tile.bk),
               {{matmul_constant_a_along_m, "a_along_m", a_along_m},
                {matmul_constant_b_along_k, "b_along_k", b_along_k},
                {matmul_constant_a_vectors, "a_vectors", a_vectors},
                {matmul_constant_b_vectors, "b_vectors", b_vectors}});
  at::Tensor out = at::empty(sizes, a.options());
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    encoder.tensor(matmul_buffer_a, a);
    encoder.tensor(matmul_buffer_b, b);
    encoder.tensor(matmul_buffer_out, out);
    encoder.params(matmul_buffer_params, params);
    encoder.dispatch({.x = static_cast<size_t>(tiles_m * tiles_n), .z = static_cast<size_t>(batch)},
                     {.x = 32, .y = 2, .z = 2});
  });
  return out;
}

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) { define_op(m, "matmul(Tensor a, Tensor b) -> Tensor", matmul); }

}  // namespace mpsk
