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
  int64_t bm, bn, bk;              // no bk where the kernel has one for all
  int64_t wm = 1, wn = 1, wk = 1;  // simdgroups
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
  double min_use = 0.0;  // only where this grid makes so much of the chip, see matmul_use
  double fill = 0.0;     // k is split until it does, or further would not pay
  // The same in threadgroups of a core. Matrix units of M5, one for each scheduler, are fed by a simdgroup each.
  int64_t min_groups = 0;   // only where the grid has them, unsplit
  int64_t fill_groups = 0;  // k is split until it does
  matmul_kernel use;
  const char* evidence;
};

// Splits of k have at least so many steps of it: fewer, and the partial sums move more bytes than the operands.
inline constexpr int64_t matmul_min_split_k = 512;
inline constexpr int64_t matmul_max_splits = 64;

// Of a core: simdgroups of 64 registers a thread that its registers hold; bytes of threadgroup memory; simdgroups that
// keep its matrix units busy although each waits for its own results and loads. Published for M1 and M2; 11 is between
// the 8 that fragment multiplications alone need and the 24 of other arithmetic.
inline constexpr int64_t matmul_core_simdgroups = 26;
inline constexpr int64_t matmul_core_memory = 60 << 10;
inline constexpr int64_t matmul_busy_simdgroups = 11;

inline constexpr matmul_choice matmul_choices[] = {
    {.max_m = 16,
     .max_n = 16,
     .min_batch = 16,
     .use = {matmul_kernel::packed, 16, 16, 16, 1, 1, 1, 8},
     .evidence =
         "unmeasured: a threadgroup of 4 simdgroups for 16x16 would use one of them; 8 products fill 256 threads"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 1,
     .fill = 0.25,
     .use = {matmul_kernel::skinny_k, 1, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: b is read once; MLX walks 4 rows of it per thread as well"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 2,
     .fill = 0.25,
     .use = {matmul_kernel::skinny_k, 2, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: b is read once"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 4,
     .fill = 0.25,
     .use = {matmul_kernel::skinny_k, 4, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: b is read once; with more than 4 rows a costs more loads than b, and fragments pay"},
    {.bytes = 4,
     .max_m = 1,
     .fill = 0.5,
     .use = {matmul_kernel::skinny_n, 1, 32, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 2,
     .max_m = 1,
     .fill = 0.5,
     .use = {matmul_kernel::skinny_n, 1, 64, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 4,
     .max_m = 4,
     .fill = 0.5,
     .use = {matmul_kernel::skinny_n, 4, 32, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 2,
     .max_m = 4,
     .fill = 0.5,
     .use = {matmul_kernel::skinny_n, 4, 64, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    // Tiles. First the largest that leave next to nothing of the chip idle: they load the fewest fragments, and read a
    // and b the fewest times. Then less use is enough; then what keeps most of the chip busy.
    {.bytes = 4,
     .max_m = 16,
     .min_groups = 2,
     .use = {matmul_kernel::tile, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: b is read once, by as many simdgroups as a second launch would give"},
    {.bytes = 2,
     .max_m = 16,
     .min_groups = 2,
     .use = {matmul_kernel::tile, 16, 32, 128, 1, 2, 4},
     .evidence = "unmeasured: b is read once, by as many simdgroups as a second launch would give"},
    {.bytes = 4,
     .max_m = 16,
     .fill = 0.25,
     .use = {matmul_kernel::tile, 16, 16, 128, 1, 1, 8},
     .evidence = "unmeasured: b is read once; the most threadgroups"},
    {.bytes = 2,
     .max_m = 16,
     .fill = 0.25,
     .use = {matmul_kernel::tile, 16, 16, 256, 1, 1, 8},
     .evidence = "unmeasured: b is read once; the most threadgroups"},
    {.tensors = true,
     .max_m = 32,
     .fill_groups = 1,
     .use = {matmul_kernel::tensor, 32, 64, 0, 1, 1},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding"},
    {.tensors = true,
     .min_groups = 4,
     .use = {matmul_kernel::tensor, 128, 128, 0, 4, 2},
     .evidence = "unmeasured: MLX's tile on M5; 32x64 for a simdgroup, so that L1 keeps up and lines are read whole"},
    {.tensors = true,
     .min_groups = 2,
     .use = {matmul_kernel::tensor, 64, 64, 0, 2, 1},
     .evidence = "unmeasured: the smallest tile that L2 keeps up with"},
    {.tensors = true,
     .fill_groups = 1,
     .use = {matmul_kernel::tensor, 32, 64, 0, 1, 1},
     .evidence = "unmeasured: the most threadgroups; k is split only for cores that would idle"},
    {.max_cores = 20,
     .bytes = 2,
     .layout = matmul_layout::b_along_k,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 64, 32, 32, 2, 2},
     .evidence = "unmeasured here: what MLX takes for this layout on base and Pro chips"},
    {.bytes = 4,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .evidence = "unmeasured here: what MLX takes for fp32"},
    {.min_cores = 21,
     .max_cores = 59,
     .bytes = 2,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .evidence = "unmeasured here: what MLX takes on Max chips"},
    {.bytes = 2,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 64, 64, 16, 1, 2},
     .evidence = "unmeasured here: what MLX takes for half and bfloat on all but Max chips; the fewest fragment loads"},
    {.bytes = 4,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 32, 64, 16, 1, 2},
     .evidence = "unmeasured: more threadgroups than 64x64, or less padding"},
    {.bytes = 2,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 32, 64, 32, 1, 2},
     .evidence = "unmeasured: more threadgroups than 64x64, or less padding"},
    {.bytes = 4,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 40, 64, 16, 1, 2},
     .evidence = "unmeasured: rows that 32 and 64 would pad, as 154 and 197"},
    {.bytes = 2,
     .min_use = 0.94,
     .use = {matmul_kernel::tile, 40, 64, 32, 1, 2},
     .evidence = "unmeasured: rows that 32 and 64 would pad, as 154 and 197"},
    {.min_use = 0.94,
     .use = {matmul_kernel::tile, 32, 32, 32, 2, 2},
     .evidence = "unmeasured: more threadgroups, or less padding"},
    {.bytes = 4,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .evidence = "unmeasured: the fewest fragment loads"},
    {.bytes = 2,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 64, 64, 16, 1, 2},
     .evidence = "unmeasured: the fewest fragment loads"},
    {.bytes = 4,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 32, 64, 16, 1, 2},
     .evidence = "unmeasured: more threadgroups than 64x64, or less padding"},
    {.bytes = 2,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 32, 64, 32, 1, 2},
     .evidence = "unmeasured: more threadgroups than 64x64, or less padding"},
    {.bytes = 4,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 40, 64, 16, 1, 2},
     .evidence = "unmeasured: rows that 32 and 64 would pad"},
    {.bytes = 2,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 40, 64, 32, 1, 2},
     .evidence = "unmeasured: rows that 32 and 64 would pad"},
    {.min_use = 0.86,
     .use = {matmul_kernel::tile, 32, 32, 32, 2, 2},
     .evidence = "unmeasured: more threadgroups, or less padding"},
    {.bytes = 4,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: four times the simdgroups of 16x32, without a second launch"},
    {.bytes = 2,
     .min_use = 0.86,
     .use = {matmul_kernel::tile, 16, 32, 128, 1, 2, 4},
     .evidence = "unmeasured: four times the simdgroups of 16x32, without a second launch"},
    {.bytes = 4,
     .min_use = 0.86,
     .fill = 0.86,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .evidence = "unmeasured: few tiles and a long k: a second launch for the sums"},
    {.bytes = 2,
     .min_use = 0.86,
     .fill = 0.86,
     .use = {matmul_kernel::tile, 64, 64, 16, 1, 2},
     .evidence = "unmeasured: few tiles and a long k: a second launch for the sums"},
    {.min_use = 0.8,
     .use = {matmul_kernel::tile, 32, 32, 32, 2, 2},
     .evidence = "unmeasured: more threadgroups, or less padding"},
    {.bytes = 4,
     .min_use = 0.8,
     .use = {matmul_kernel::tile, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: four times the simdgroups of 16x32, without a second launch"},
    {.bytes = 2,
     .min_use = 0.8,
     .use = {matmul_kernel::tile, 16, 32, 128, 1, 2, 4},
     .evidence = "unmeasured: four times the simdgroups of 16x32, without a second launch"},
    {.bytes = 4,
     .min_use = 0.5,
     .use = {matmul_kernel::tile, 16, 16, 128, 1, 1, 8},
     .evidence = "unmeasured: eight simdgroups for each 16x16, without a second launch"},
    {.bytes = 2,
     .min_use = 0.5,
     .use = {matmul_kernel::tile, 16, 16, 256, 1, 1, 8},
     .evidence = "unmeasured: eight simdgroups for each 16x16, without a second launch"},
    {.fill = 0.86,
     .use = {matmul_kernel::tile, 32, 32, 32, 2, 2},
     .evidence = "unmeasured: few tiles: k is split as far as it goes"},

    {.layout = matmul_layout::b_along_k,
     .max_m = 1,
     .gated = true,
     .fill = 0.25,
     .use = {matmul_kernel::skinny_k, 1, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 4,
     .gated = true,
     .fill = 0.25,
     .use = {matmul_kernel::skinny_k, 4, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.bytes = 4,
     .max_m = 16,
     .gated = true,
     .fill = 0.25,
     .use = {matmul_kernel::gated, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.bytes = 2,
     .max_m = 16,
     .gated = true,
     .fill = 0.25,
     .use = {matmul_kernel::gated, 16, 32, 128, 1, 2, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.tensors = true,
     .max_m = 32,
     .gated = true,
     .fill_groups = 1,
     .use = {matmul_kernel::tensor_gated, 32, 64, 0, 1, 2},
     .evidence = "unmeasured: half of a tile of 64 rows would be padding"},
    {.tensors = true,
     .gated = true,
     .min_groups = 2,
     .use = {matmul_kernel::tensor_gated, 64, 64, 0, 2, 2},
     .evidence = "unmeasured: with its two products, 64 accumulators a lane"},
    {.tensors = true,
     .gated = true,
     .fill_groups = 1,
     .use = {matmul_kernel::tensor_gated, 32, 64, 0, 1, 2},
     .evidence = "unmeasured: the most threadgroups"},
    {.gated = true,
     .min_use = 0.9,
     .use = {matmul_kernel::gated, 64, 32, 16, 2, 2},
     .evidence = "unmeasured: with its two products, the accumulators of 64x64"},
    {.gated = true,
     .min_use = 0.82,
     .use = {matmul_kernel::gated, 32, 32, 16, 2, 2},
     .evidence = "unmeasured: less padding, or more threadgroups"},
    {.gated = true,
     .min_use = 0.82,
     .use = {matmul_kernel::gated, 64, 32, 16, 2, 2},
     .evidence = "unmeasured: fewer fragment loads"},
    {.gated = true,
     .fill = 0.86,
     .use = {matmul_kernel::gated, 32, 32, 16, 2, 2},
     .evidence = "unmeasured: the most threadgroups"},
};

constexpr int64_t matmul_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Threadgroups of the grid, before k is split.
constexpr int64_t matmul_groups(const matmul_kernel& kernel, int64_t m, int64_t n, int64_t batch) {
  return matmul_ceil_div(m, kernel.bm) * matmul_ceil_div(n, kernel.bn) * matmul_ceil_div(batch, kernel.packs);
}

// Threadgroup memory of a tile's operands, whichever way they lie: rows are an odd number of 16 bytes apart.
constexpr int64_t matmul_memory(const matmul_kernel& kernel, int64_t bytes) {
  const auto tile = [&](int64_t rows, int64_t columns) { return rows * ((columns * bytes / 16) | 1) * 16; };
  const int64_t a = std::max(tile(kernel.bm, kernel.bk), tile(kernel.bk, kernel.bm));
  const int64_t b = std::max(tile(kernel.bk, kernel.bn), tile(kernel.bn, kernel.bk));
  return (a + b * (kernel.is == matmul_kernel::gated ? 2 : 1)) * kernel.packs;
}

// How much of the chip a grid makes use of, its k in so many splits: the share of its tiles that out fills, times that
// of the time in which cores are busy until the last is done. Threadgroups are dealt to cores in turn; each core runs
// as many at a time as it holds; fewer simdgroups than keep it busy take as long as those.
constexpr double matmul_use(const matmul_kernel& kernel, const matmul_problem& problem, int64_t splits) {
  const int64_t tiles = matmul_groups(kernel, problem.m, problem.n, problem.batch);
  const int64_t groups = tiles * splits, simdgroups = kernel.wm * kernel.wn * kernel.wk * kernel.packs;
  const int64_t held = std::max<int64_t>(
      1, std::min(matmul_core_simdgroups / simdgroups, matmul_core_memory / matmul_memory(kernel, problem.bytes)));
  const double least = double(matmul_busy_simdgroups) / double(simdgroups);
  const int64_t busiest = matmul_ceil_div(groups, problem.cores), rest = busiest % held;
  const double time =
      double(busiest / held) * std::max(double(held), least) + (rest == 0 ? 0.0 : std::max(double(rest), least));
  const double filled = double(problem.m) * double(problem.n) * double(problem.batch) /
                        (double(tiles) * double(kernel.bm * kernel.bn * kernel.packs));
  return filled * double(groups) / (double(problem.cores) * time);
}

// Into how many parts k is split: the fewest that fill the chip as far as the row asks for.
constexpr int64_t matmul_splits(const matmul_choice& choice, const matmul_problem& problem) {
  if (problem.grouped || choice.use.is == matmul_kernel::packed) return 1;
  const int64_t most = std::clamp<int64_t>(problem.k / matmul_min_split_k, 1, matmul_max_splits);
  int64_t splits = 1;
  const int64_t groups = matmul_groups(choice.use, problem.m, problem.n, problem.batch);
  const auto fills = [&] {
    return groups * splits >= choice.fill_groups * problem.cores &&
           (choice.fill == 0.0 || matmul_use(choice.use, problem, splits) >= choice.fill);
  };
  while (splits < most && !fills()) ++splits;
  return splits;
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
         matmul_groups(choice.use, problem.m, problem.n, problem.batch) >= choice.min_groups * problem.cores &&
         (choice.min_use == 0.0 || matmul_use(choice.use, problem, matmul_splits(choice, problem)) >= choice.min_use);
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
#define MPSK_TILE(dtype, type, bm, bn, bk, wm, wn, wk) \
  count(#dtype, {matmul_kernel::tile, bm, bn, bk, wm, wn, wk}, false);
#define MPSK_GATED(dtype, type, bm, bn, bk, wm, wn, wk) \
  count(#dtype, {matmul_kernel::gated, bm, bn, bk, wm, wn, wk}, true);
#define MPSK_PACKED(dtype, type, bm, bn, bk, packs) \
  count(#dtype, {matmul_kernel::packed, bm, bn, bk, 1, 1, 1, packs}, false);
#define MPSK_SKINNY_K(dtype, type, rows, products)                                                           \
  count(#dtype, {matmul_kernel::skinny_k, rows, matmul_skinny_columns, 1, 1, 1, matmul_skinny_k_simdgroups}, \
        products == 2);
#define MPSK_SKINNY_N(dtype, type, rows)                                                            \
  count(#dtype,                                                                                     \
        {matmul_kernel::skinny_n, rows, 128 / (std::string_view(#dtype) == "f32" ? 4 : 2), 1, 1, 1, \
         matmul_skinny_n_simdgroups},                                                               \
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
