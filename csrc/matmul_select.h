// Which matmul kernel runs: the first row that fits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string_view>

#include "matmul_params.h"
#include "matmul_variants.h"

namespace mpsk {

// A kernel. One threadgroup makes `packs` tiles of bm x bn.
struct matmul_kernel {
  enum kind { tile, gated, packed, skinny_k, skinny_n, tensor, tensor_gated };
  kind is;
  int64_t bm, bn, bk;      // no bk where the kernel has one for all
  int64_t wm = 1, wn = 1;  // simdgroups
  int64_t packs = 1;
  constexpr bool operator==(const matmul_kernel&) const = default;
};

// What the choice depends on.
struct matmul_problem {
  int cores;        // GPU cores
  int64_t bytes;    // of an element
  bool b_along_k;   // the layout of b: its shorter stride is that of k
  int64_t m, n, k;  // after batches that share b became rows, and columns that are fewer than rows became those
  int64_t batch;
  bool gated;
  bool only_tiles;  // groups, and second pairs of operands, of which other kernels know nothing
  bool grouped;     // of unknown sizes; m or k is their average
  bool tensors;     // operands, precision and device are such that the matrix units of M5 may do it
};

enum class matmul_layout { any, b_along_k, b_along_n };

inline constexpr int64_t matmul_any = std::numeric_limits<int64_t>::max();

struct matmul_choice {
  bool tensors = false;  // only where the matrix units may do it: from Apple family 10 on
  int min_cores = 0;     // device class: 10 cores are a base chip, 20 a Pro, 40 a Max, 80 an Ultra
  int max_cores = 1000;
  int64_t bytes = 0;  // of an element; 0: any
  matmul_layout layout = matmul_layout::any;
  int64_t max_m = matmul_any;
  int64_t max_n = matmul_any;
  int64_t min_batch = 1;
  bool gated = false;
  bool fills = false;  // only where the grid fills the chip, by itself or with k split
  bool whole = false;  // by itself
  // Threadgroups that fill a core. 24 simdgroups saturate its arithmetic, and threadgroups of four of them that load in
  // turn need company; matrix units, of which a core has one for each scheduler, are fed by a simdgroup each.
  int64_t groups_per_core = 4;
  matmul_kernel use;
  const char* evidence;
};

// Splits of k have at least so many steps of it: fewer, and the partial sums move more bytes than the operands.
inline constexpr int64_t matmul_min_split_k = 512;
inline constexpr int64_t matmul_max_splits = 64;

inline constexpr matmul_choice matmul_choices[] = {
    {.max_m = 16,
     .max_n = 16,
     .min_batch = 16,
     .use = {matmul_kernel::packed, 16, 16, 16, 1, 1, 8},
     .evidence =
         "unmeasured: a threadgroup of 4 simdgroups for 16x16 would use one of them; 8 products fill 256 threads"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 1,
     .use = {matmul_kernel::skinny_k, 1, 16, 1, 1, 4},
     .evidence = "unmeasured: b is read once; MLX walks 4 rows of it per thread as well"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 2,
     .use = {matmul_kernel::skinny_k, 2, 16, 1, 1, 4},
     .evidence = "unmeasured: b is read once"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 4,
     .use = {matmul_kernel::skinny_k, 4, 16, 1, 1, 4},
     .evidence = "unmeasured: b is read once; with more than 4 rows a costs more loads than b, and fragments pay"},
    {.bytes = 4,
     .max_m = 1,
     .use = {matmul_kernel::skinny_n, 1, 32, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 2,
     .max_m = 1,
     .use = {matmul_kernel::skinny_n, 1, 64, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 4,
     .max_m = 4,
     .use = {matmul_kernel::skinny_n, 4, 32, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 2,
     .max_m = 4,
     .use = {matmul_kernel::skinny_n, 4, 64, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 4,
     .max_m = 8,
     .use = {matmul_kernel::tile, 8, 64, 32, 1, 4},
     .evidence = "unmeasured: b is read once, in lines of 128 bytes, and no fragment is multiplied for nothing"},
    {.bytes = 2,
     .max_m = 8,
     .use = {matmul_kernel::tile, 8, 64, 64, 1, 4},
     .evidence = "unmeasured: b is read once, in lines of 128 bytes, and no fragment is multiplied for nothing"},
    {.bytes = 4,
     .max_m = 16,
     .use = {matmul_kernel::tile, 16, 64, 32, 1, 4},
     .evidence = "unmeasured: b is read once, in lines of 128 bytes"},
    {.bytes = 2,
     .max_m = 16,
     .use = {matmul_kernel::tile, 16, 64, 64, 1, 4},
     .evidence = "unmeasured: b is read once, in lines of 128 bytes"},
    {.tensors = true,
     .max_m = 32,
     .groups_per_core = 1,
     .use = {matmul_kernel::tensor, 32, 64, 0, 1, 1},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding"},
    {.tensors = true,
     .fills = true,
     .whole = true,
     .use = {matmul_kernel::tensor, 128, 128, 0, 4, 2},
     .evidence = "unmeasured: MLX's tile on M5; 32x64 for a simdgroup, so that L1 keeps up and lines are read whole"},
    {.tensors = true,
     .fills = true,
     .whole = true,
     .groups_per_core = 2,
     .use = {matmul_kernel::tensor, 64, 64, 0, 2, 1},
     .evidence = "unmeasured: the smallest tile that L2 keeps up with"},
    {.tensors = true,
     .groups_per_core = 1,
     .use = {matmul_kernel::tensor, 32, 64, 0, 1, 1},
     .evidence = "unmeasured: the most threadgroups; k is split only for cores that would idle"},
    {.max_m = 32,
     .fills = true,
     .use = {matmul_kernel::tile, 32, 64, 16, 1, 2},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding"},
    {.max_m = 32,
     .use = {matmul_kernel::tile, 32, 32, 32, 2, 2},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding"},
    {.max_n = 32,
     .fills = true,
     .use = {matmul_kernel::tile, 64, 32, 32, 2, 2},
     .evidence = "unmeasured: half of a tile of 64 columns would be padding"},
    {.max_cores = 20,
     .bytes = 2,
     .layout = matmul_layout::b_along_k,
     .fills = true,
     .use = {matmul_kernel::tile, 64, 32, 32, 2, 2},
     .evidence = "unmeasured here: what MLX takes for this layout on base and Pro chips"},
    {.max_cores = 20,
     .bytes = 2,
     .fills = true,
     .use = {matmul_kernel::tile, 64, 64, 16, 1, 2},
     .evidence =
         "unmeasured here: what MLX takes for half and bfloat on base and Pro chips; the fewest fragment loads"},
    {.min_cores = 80,
     .bytes = 2,
     .fills = true,
     .use = {matmul_kernel::tile, 64, 64, 16, 1, 2},
     .evidence = "unmeasured here: what MLX takes for large half and bfloat products on Ultra chips"},
    {.fills = true,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .evidence = "unmeasured here: what MLX takes for fp32, and for all on Max chips; half the reads of 32x32"},
    {.bytes = 2,
     .fills = true,
     .use = {matmul_kernel::tile, 64, 32, 32, 2, 2},
     .evidence = "unmeasured: more threadgroups than 64x64; 64 bytes of a row at a time"},
    {.fills = true,
     .use = {matmul_kernel::tile, 32, 64, 16, 1, 2},
     .evidence = "unmeasured: more threadgroups than 64x64"},
    {.bytes = 4,
     .layout = matmul_layout::b_along_n,
     .use = {matmul_kernel::tile, 32, 32, 16, 2, 2},
     .evidence = "unmeasured: the most threadgroups; 64 bytes of a row at a time, and half the memory of 32x32x32"},
    {.bytes = 2,
     .layout = matmul_layout::b_along_n,
     .max_n = 32,
     .use = {matmul_kernel::tile, 32, 32, 16, 2, 2},
     .evidence = "unmeasured: the most threadgroups"},
    {.use = {matmul_kernel::tile, 32, 32, 32, 2, 2},
     .evidence = "unmeasured: the most threadgroups, and half the barriers of 32x32x16"},

    {.layout = matmul_layout::b_along_k,
     .max_m = 1,
     .gated = true,
     .use = {matmul_kernel::skinny_k, 1, 16, 1, 1, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 4,
     .gated = true,
     .use = {matmul_kernel::skinny_k, 4, 16, 1, 1, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.bytes = 4,
     .max_m = 8,
     .gated = true,
     .use = {matmul_kernel::gated, 8, 32, 32, 1, 4},
     .evidence = "unmeasured: both weights are read once, in lines of 128 bytes"},
    {.bytes = 2,
     .max_m = 8,
     .gated = true,
     .use = {matmul_kernel::gated, 8, 32, 64, 1, 4},
     .evidence = "unmeasured: both weights are read once, in lines of 128 bytes"},
    {.tensors = true,
     .max_m = 32,
     .gated = true,
     .groups_per_core = 1,
     .use = {matmul_kernel::tensor_gated, 32, 64, 0, 1, 2},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding"},
    {.tensors = true,
     .gated = true,
     .fills = true,
     .whole = true,
     .groups_per_core = 2,
     .use = {matmul_kernel::tensor_gated, 64, 64, 0, 2, 2},
     .evidence = "unmeasured: with its two products, 64 accumulators a lane"},
    {.tensors = true,
     .gated = true,
     .groups_per_core = 1,
     .use = {matmul_kernel::tensor_gated, 32, 64, 0, 1, 2},
     .evidence = "unmeasured: the most threadgroups"},
    {.max_m = 32,
     .gated = true,
     .use = {matmul_kernel::gated, 32, 32, 16, 2, 2},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding, and it makes no fewer threadgroups"},
    {.gated = true,
     .fills = true,
     .use = {matmul_kernel::gated, 64, 32, 16, 2, 2},
     .evidence = "unmeasured: with its two products, the accumulators of 64x64"},
    {.gated = true, .use = {matmul_kernel::gated, 32, 32, 16, 2, 2}, .evidence = "unmeasured: the most threadgroups"},
};

constexpr int64_t matmul_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Threadgroups of the grid, before k is split.
constexpr int64_t matmul_groups(const matmul_kernel& kernel, int64_t m, int64_t n, int64_t batch) {
  return matmul_ceil_div(m, kernel.bm) * matmul_ceil_div(n, kernel.bn) * matmul_ceil_div(batch, kernel.packs);
}

// Into how many parts k is split so that the grid fills the chip.
constexpr int64_t matmul_splits(const matmul_choice& choice, const matmul_problem& problem) {
  if (problem.grouped || choice.use.is == matmul_kernel::packed) return 1;
  const int64_t groups = matmul_groups(choice.use, problem.m, problem.n, problem.batch);
  const int64_t wanted = matmul_ceil_div(choice.groups_per_core * problem.cores, groups);
  return std::clamp<int64_t>(std::min(wanted, problem.k / matmul_min_split_k), 1, matmul_max_splits);
}

// Of one simdgroup or several, that know of groups and of second pairs of operands.
constexpr bool makes_tiles(const matmul_kernel& kernel) {
  return kernel.is != matmul_kernel::packed && kernel.is != matmul_kernel::skinny_k &&
         kernel.is != matmul_kernel::skinny_n;
}

constexpr bool matmul_fits(const matmul_choice& choice, const matmul_problem& problem) {
  const bool layout =
      choice.layout == matmul_layout::any || problem.b_along_k == (choice.layout == matmul_layout::b_along_k);
  return (!choice.tensors || problem.tensors) && problem.cores >= choice.min_cores &&
         problem.cores <= choice.max_cores && (choice.bytes == 0 || choice.bytes == problem.bytes) && layout &&
         problem.m <= choice.max_m && problem.n <= choice.max_n && problem.batch >= choice.min_batch &&
         problem.gated == choice.gated && (!problem.only_tiles || makes_tiles(choice.use)) &&
         (!choice.fills || matmul_groups(choice.use, problem.m, problem.n, problem.batch) *
                                   (choice.whole ? 1 : matmul_splits(choice, problem)) >=
                               choice.groups_per_core * problem.cores);
}

constexpr const matmul_choice& choose_matmul(const matmul_problem& problem) {
  for (const matmul_choice& choice : matmul_choices) {
    if (matmul_fits(choice, problem)) return choice;
  }
  return *(std::end(matmul_choices) - 1);
}

// A choice can only name kernels that exist, for each of the dtypes that it takes.
static_assert([] {
  for (const matmul_choice& choice : matmul_choices) {
    const int wanted = choice.bytes == 4 ? 1 : choice.bytes == 2 ? 2 : 3;
    int built = 0;
    const auto count = [&](std::string_view dtype, const matmul_kernel& kernel, bool gated) {
      const int64_t bytes = dtype == "f32" ? 4 : 2;
      built += kernel == choice.use && gated == choice.gated && (choice.bytes == 0 || choice.bytes == bytes);
    };
#define MPSK_TILE(dtype, type, bm, bn, bk, wm, wn) count(#dtype, {matmul_kernel::tile, bm, bn, bk, wm, wn}, false);
#define MPSK_GATED(dtype, type, bm, bn, bk, wm, wn) count(#dtype, {matmul_kernel::gated, bm, bn, bk, wm, wn}, true);
#define MPSK_PACKED(dtype, type, bm, bn, bk, packs) \
  count(#dtype, {matmul_kernel::packed, bm, bn, bk, 1, 1, packs}, false);
#define MPSK_SKINNY_K(dtype, type, rows, products)                                                \
  count(#dtype,                                                                                   \
        {matmul_kernel::skinny_k, rows, matmul_skinny_columns * matmul_skinny_k_simdgroups, 1, 1, \
         matmul_skinny_k_simdgroups},                                                             \
        products == 2);
#define MPSK_SKINNY_N(dtype, type, rows)                                                         \
  count(#dtype,                                                                                  \
        {matmul_kernel::skinny_n, rows, 128 / (std::string_view(#dtype) == "f32" ? 4 : 2), 1, 1, \
         matmul_skinny_n_simdgroups},                                                            \
        false);
#define MPSK_TENSOR(dtype, type, bm, bn, wm, wn) count(#dtype, {matmul_kernel::tensor, bm, bn, 0, wm, wn}, false);
#define MPSK_TENSOR_GATED(dtype, type, bm, bn, wm, wn) \
  count(#dtype, {matmul_kernel::tensor_gated, bm, bn, 0, wm, wn}, true);
    MATMUL_TILE_VARIANTS(MPSK_TILE)
    MATMUL_TENSOR_VARIANTS(MPSK_TENSOR)
    MATMUL_TENSOR_GATED_VARIANTS(MPSK_TENSOR_GATED)
    MATMUL_GATED_VARIANTS(MPSK_GATED)
    MATMUL_PACKED_VARIANTS(MPSK_PACKED)
    MATMUL_SKINNY_K_VARIANTS(MPSK_SKINNY_K)
    MATMUL_SKINNY_N_VARIANTS(MPSK_SKINNY_N)
#undef MPSK_TILE
#undef MPSK_TENSOR
#undef MPSK_TENSOR_GATED
#undef MPSK_GATED
#undef MPSK_PACKED
#undef MPSK_SKINNY_K
#undef MPSK_SKINNY_N
    if (built != wanted) return false;
  }
  return true;
}());

}  // namespace mpsk
