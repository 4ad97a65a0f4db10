// Which matmul kernel runs, and how much of k each of its threadgroups takes.
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
  enum kind { tile, gated, packed, skinny_k, skinny_n, tensor, tensor_gated, tensor_gathered };
  kind is;
  int64_t bm, bn, bk;              // no bk where the kernel has one for all
  int64_t wm = 1, wn = 1, wk = 1;  // simdgroups
  int64_t packs = 1;
  constexpr bool operator==(const matmul_kernel&) const = default;
};

// What the choice depends on.
struct matmul_problem {
  int family;       // Apple GPU family: 7 is M1, 8 M2, 9 M3 and M4, 10 M5
  int cores;        // GPU cores
  int64_t bytes;    // of an element
  bool a_along_m;   // the layout of a: its shorter stride is that of m
  bool b_along_k;   // the layout of b: its shorter stride is that of k
  int64_t m, n, k;  // after batches that share b became rows, and columns that are fewer than rows became those; all k
  int64_t term_k;   // of each term of a sum of products, between which k is split; 0: one product
  int64_t batch;
  bool gated;
  bool only_tiles;  // groups, second pairs of operands and sums of products, of which other kernels know nothing
  bool grouped;     // of unknown sizes; m or k is their average
  bool gathered;    // rows of a are those that indices name
  bool tensors;     // operands, precision and device are such that the matrix units of M5 may do it
  bool operator==(const matmul_problem&) const = default;
};

enum class matmul_layout { any, b_along_k, b_along_n };

inline constexpr int64_t matmul_any = std::numeric_limits<int64_t>::max();
// So many threadgroups for each core even out what no estimate knows: cores that begin late, or that other work shares.
inline constexpr int64_t matmul_enough_groups = 4;

// A row of the table. It fits where all of its conditions hold.
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
  bool gathered = false;   // of kernels on matrix units: the others take such rows as well
  int64_t min_groups = 0;  // threadgroups for each core that the grid has, k unsplit
  int64_t fill = 0;        // k is split until each core has so many simdgroups
  matmul_kernel use;
  // What the kernel does beside multiplying, as counted: instructions for each that multiplies, and the beginning and
  // the end of a tile, in k that would take as long. Rows that say so compete: see matmul_time.
  double overhead = 0.0;
  double ends = 0.0;
  const char* evidence;
  constexpr bool competes() const { return ends != 0.0; }
};

inline constexpr matmul_choice matmul_choices[] = {
    {.max_m = 16,
     .max_n = 16,
     .min_batch = 16,
     .use = {matmul_kernel::packed, 16, 16, 16, 1, 1, 1, 8},
     .evidence =
         "unmeasured: a threadgroup of 4 simdgroups for 16x16 would use one of them; 8 products fill 256 threads"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 1,
     .fill = 3,
     .use = {matmul_kernel::skinny_k, 1, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: b is read once; MLX walks 4 rows of it per thread as well"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 2,
     .fill = 3,
     .use = {matmul_kernel::skinny_k, 2, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: b is read once"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 4,
     .fill = 3,
     .use = {matmul_kernel::skinny_k, 4, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: b is read once; with more than 4 rows a costs more loads than b, and fragments pay"},
    {.bytes = 4,
     .max_m = 1,
     .fill = 6,
     .use = {matmul_kernel::skinny_n, 1, 32, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 2,
     .max_m = 1,
     .fill = 6,
     .use = {matmul_kernel::skinny_n, 1, 64, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 4,
     .max_m = 4,
     .fill = 6,
     .use = {matmul_kernel::skinny_n, 4, 32, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 2,
     .max_m = 4,
     .fill = 6,
     .use = {matmul_kernel::skinny_n, 4, 64, 1, 1, 1, 8},
     .evidence = "unmeasured: b is read once"},
    {.bytes = 4,
     .layout = matmul_layout::b_along_n,
     .max_m = 16,
     .fill = 3,
     .use = {matmul_kernel::tile, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: b is read once, in lines of 128 bytes"},
    {.bytes = 2,
     .layout = matmul_layout::b_along_n,
     .max_m = 16,
     .fill = 3,
     .use = {matmul_kernel::tile, 16, 64, 64, 1, 2, 4},
     .evidence = "unmeasured: b is read once, in lines of 128 bytes"},
    {.bytes = 4,
     .max_m = 16,
     .min_groups = matmul_enough_groups,
     .use = {matmul_kernel::tile, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: b is read once, by as many simdgroups as a second launch would give"},
    {.bytes = 2,
     .max_m = 16,
     .min_groups = matmul_enough_groups,
     .use = {matmul_kernel::tile, 16, 32, 128, 1, 2, 4},
     .evidence = "unmeasured: b is read once, by as many simdgroups as a second launch would give"},
    {.bytes = 4,
     .max_m = 16,
     .fill = 3,
     .use = {matmul_kernel::tile, 16, 16, 128, 1, 1, 8},
     .evidence = "unmeasured: b is read once; the most threadgroups"},
    {.bytes = 2,
     .max_m = 16,
     .fill = 3,
     .use = {matmul_kernel::tile, 16, 16, 256, 1, 1, 8},
     .evidence = "unmeasured: b is read once; the most threadgroups"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 1,
     .gated = true,
     .fill = 3,
     .use = {matmul_kernel::skinny_k, 1, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.layout = matmul_layout::b_along_k,
     .max_m = 4,
     .gated = true,
     .fill = 3,
     .use = {matmul_kernel::skinny_k, 4, 4, 1, 1, 1, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.bytes = 4,
     .max_m = 16,
     .gated = true,
     .fill = 3,
     .use = {matmul_kernel::gated, 16, 32, 64, 1, 2, 4},
     .evidence = "unmeasured: both weights are read once"},
    {.bytes = 2,
     .max_m = 16,
     .gated = true,
     .fill = 3,
     .use = {matmul_kernel::gated, 16, 32, 128, 1, 2, 4},
     .evidence = "unmeasured: both weights are read once"},

    // Tiles of more rows. Of those that fit: the first that the estimate takes for about as fast as any.
    {.tensors = true,
     .use = {matmul_kernel::tensor, 128, 128, 0, 4, 2},
     .ends = 64,
     .evidence = "unmeasured: MLX's tile on M5; 32x64 for a simdgroup, so that L1 keeps up and lines are read whole"},
    {.tensors = true,
     .use = {matmul_kernel::tensor, 64, 64, 0, 2, 2},
     .ends = 64,
     .evidence = "unmeasured: what Apple starts from; a simdgroup for each of a core's matrix units"},
    {.tensors = true,
     .bytes = 2,
     .use = {matmul_kernel::tensor, 64, 64, 0, 2, 1},
     .ends = 64,
     .evidence = "unmeasured: the smallest tile that L2 keeps up with"},
    {.tensors = true,
     .use = {matmul_kernel::tensor, 32, 64, 0, 1, 1},
     .ends = 64,
     .evidence = "unmeasured: the most threadgroups, or less padding"},
    {.tensors = true,
     .gathered = true,
     .use = {matmul_kernel::tensor_gathered, 64, 64, matmul_tensor_gathered_k, 2, 2},
     .ends = 64,
     .evidence = "unmeasured: rows of 64 k are gathered into threadgroup memory, as llama.cpp keeps its tiles there"},
    {.max_cores = 20,
     .bytes = 2,
     .layout = matmul_layout::b_along_k,
     .use = {matmul_kernel::tile, 64, 32, 32, 2, 2},
     .overhead = 0.041,
     .ends = 15,
     .evidence = "unmeasured here: what MLX takes for this layout on base and Pro chips"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .overhead = 0.045,
     .ends = 8,
     .evidence = "unmeasured here: what MLX takes for fp32"},
    {.min_cores = 21,
     .max_cores = 59,
     .bytes = 2,
     .use = {matmul_kernel::tile, 64, 64, 16, 2, 2},
     .overhead = 0.036,
     .ends = 7.4,
     .evidence = "unmeasured here: what MLX takes on Max chips"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 64, 64, 16, 1, 2},
     .overhead = 0.024,
     .ends = 4.8,
     .evidence = "unmeasured here: what MLX takes for half and bfloat on all but Max chips; the fewest fragment loads"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 32, 64, 16, 1, 2},
     .overhead = 0.057,
     .ends = 8.3,
     .evidence = "unmeasured: more threadgroups than 64x64, or less padding"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 32, 64, 32, 1, 2},
     .overhead = 0.031,
     .ends = 9.4,
     .evidence = "unmeasured: more threadgroups than 64x64, or less padding"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 32, 64, 16, 1, 2},
     .overhead = 0.041,
     .ends = 8.1,
     .evidence = "unmeasured: the same, where k is short"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 40, 64, 16, 1, 2},
     .overhead = 0.047,
     .ends = 7.3,
     .evidence = "unmeasured: rows that 32 and 64 would pad, as 154 and 197"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 40, 64, 32, 1, 2},
     .overhead = 0.027,
     .ends = 8.3,
     .evidence = "unmeasured: rows that 32 and 64 would pad, as 154 and 197"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 40, 64, 32, 1, 2, 4},
     .overhead = 0.063,
     .ends = 25.5,
     .evidence = "unmeasured: where each core has but a tile or two of 40x64"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 40, 64, 64, 1, 2, 4},
     .overhead = 0.035,
     .ends = 26.2,
     .evidence = "unmeasured: where each core has but a tile or two of 40x64"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 32, 32, 16, 1, 2},
     .overhead = 0.088,
     .ends = 14.6,
     .evidence = "unmeasured: more threadgroups than 32x64, or less padding"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 32, 32, 16, 1, 2},
     .overhead = 0.069,
     .ends = 13.2,
     .evidence = "unmeasured: more threadgroups than 32x64, or less padding"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 32, 32, 64, 1, 1, 4},
     .overhead = 0.064,
     .ends = 35.5,
     .evidence = "unmeasured: four times the simdgroups of 32x32, without a second launch"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 32, 32, 64, 1, 1, 4},
     .overhead = 0.045,
     .ends = 29.9,
     .evidence = "unmeasured: four times the simdgroups of 32x32, without a second launch"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 16, 32, 64, 1, 2, 4},
     .overhead = 0.154,
     .ends = 75,
     .evidence = "unmeasured: four times the simdgroups of 16x32, without a second launch"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 16, 32, 128, 1, 2, 4},
     .overhead = 0.077,
     .ends = 88,
     .evidence = "unmeasured: four times the simdgroups of 16x32, without a second launch"},
    {.bytes = 4,
     .use = {matmul_kernel::tile, 16, 16, 128, 1, 1, 8},
     .overhead = 0.169,
     .ends = 150,
     .evidence = "unmeasured: eight simdgroups for each 16x16, without a second launch"},
    {.bytes = 2,
     .use = {matmul_kernel::tile, 16, 16, 256, 1, 1, 8},
     .overhead = 0.085,
     .ends = 176,
     .evidence = "unmeasured: eight simdgroups for each 16x16, without a second launch"},
    {.tensors = true,
     .gated = true,
     .use = {matmul_kernel::tensor_gated, 64, 64, 0, 2, 2},
     .ends = 64,
     .evidence = "unmeasured: with its two products, 64 accumulators a lane"},
    {.tensors = true,
     .gated = true,
     .use = {matmul_kernel::tensor_gated, 32, 64, 0, 1, 2},
     .ends = 64,
     .evidence = "unmeasured: the most threadgroups, or less padding"},
    {.gated = true,
     .use = {matmul_kernel::gated, 64, 32, 16, 2, 2},
     .overhead = 0.05,
     .ends = 12.6,
     .evidence = "unmeasured: with its two products, the accumulators of 64x64"},
    {.gated = true,
     .use = {matmul_kernel::gated, 32, 32, 16, 2, 2},
     .overhead = 0.09,
     .ends = 17,
     .evidence = "unmeasured: less padding, or more threadgroups"},
};

// --- What the estimate takes for granted ---

// Of a core. Where nothing else is said: published for M1 and M2, and what is known of later chips is near it.
inline constexpr int64_t matmul_core_simdgroups = 26;       // of 64 registers a thread, that its registers hold
inline constexpr int64_t matmul_core_memory = 60 << 10;     // bytes of threadgroup memory
inline constexpr double matmul_core_products = 120;         // of elements, in a cycle, by simdgroup_matrix
inline constexpr double matmul_core_tensor_products = 440;  // by the units of M5: what kernels reach of their 512
inline constexpr double matmul_core_l1_bytes = 64;          // in a cycle
inline constexpr double matmul_core_l2_bytes = 32;
inline constexpr double matmul_core_dram_bytes = 7.5;  // bandwidth by cores and clock: 6 to 9 on all chips
// Simdgroups that keep it busy although each waits for its results: of fragment multiplications, of other arithmetic,
// and of matmul2d, one for each of its matrix units.
inline constexpr double matmul_busy_multiplying = 8, matmul_busy_otherwise = 24, matmul_busy_tensor = 4;
inline constexpr double matmul_apart = 0.1;           // of arithmetic and memory traffic, what does not overlap
inline constexpr double matmul_launch_cycles = 4000;  // 2.6 us, published for M3 Ultra; at up to 1.6 GHz

// Of threadgroup memory, in a cycle: published for M1, and reported of M3 Pro.
constexpr double matmul_threadgroup_bytes(int family) { return family >= 9 ? 88 : 65; }

// Fewer than matmul_enough_groups, and what leaves matrix units unused, are taken to last so much longer.
inline constexpr double matmul_idle_units = 1.03;

// Splits of k have at least so many steps of it.
inline constexpr int64_t matmul_min_split_k = 128;
inline constexpr int64_t matmul_max_splits = 64;
// The first row wins over a later one that is estimated to be faster by no more than this.
inline constexpr double matmul_about_as_fast = 1.02;

constexpr int64_t matmul_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Of one simdgroup or several, that know of groups and of second pairs of operands.
constexpr bool makes_tiles(const matmul_kernel& kernel) {
  return kernel.is != matmul_kernel::packed && kernel.is != matmul_kernel::skinny_k &&
         kernel.is != matmul_kernel::skinny_n;
}

constexpr bool is_tensor(const matmul_kernel& kernel) {
  return kernel.is == matmul_kernel::tensor || kernel.is == matmul_kernel::tensor_gated ||
         kernel.is == matmul_kernel::tensor_gathered;
}

constexpr int64_t simdgroups_of(const matmul_kernel& kernel) {
  return kernel.wm * kernel.wn * kernel.wk * kernel.packs;
}

// How a product is launched: a kernel, and which columns of its tiles have k split into how many parts.
struct matmul_plan {
  const matmul_choice* choice;
  int64_t tiles_m, tiles_n;
  int64_t whole_tiles_n;  // the columns of tiles before them; all where splits is 1
  int64_t splits;
  int64_t k_per_split;
  double time = 0;  // estimated, of rows that compete
};

// Threadgroup memory of a tile's operands that pass through it, whichever way they lie: rows are an odd number of 16
// bytes apart. Or of the sums of shares of k on their way to the first.
constexpr int64_t matmul_memory(const matmul_kernel& kernel, int64_t bytes) {
  if (kernel.is == matmul_kernel::tensor || kernel.is == matmul_kernel::tensor_gated) return 0;
  const auto tile = [&](int64_t rows, int64_t columns) { return rows * ((columns * bytes / 16) | 1) * 16; };
  const int64_t a = std::max(tile(kernel.bm, kernel.bk), tile(kernel.bk, kernel.bm));
  const int64_t b = std::max(tile(kernel.bk, kernel.bn), tile(kernel.bn, kernel.bk));
  if (kernel.is == matmul_kernel::tensor_gathered) return a;
  const int64_t products = kernel.is == matmul_kernel::gated ? 2 : 1;
  return std::max((a + b * products) * kernel.packs, (kernel.wk - 1) * products * kernel.bm * kernel.bn * 4);
}

// Threadgroups that a core runs at a time.
constexpr int64_t matmul_held(const matmul_kernel& kernel, int64_t bytes) {
  const int64_t memory = matmul_memory(kernel, bytes);
  const int64_t fit = matmul_core_simdgroups / simdgroups_of(kernel);
  return std::max<int64_t>(1, memory == 0 ? fit : std::min(fit, matmul_core_memory / memory));
}

// Of a threadgroup: cycles that a k takes, on a core that is busy; and simdgroups that keep a core busy.
struct matmul_pace {
  double step, busy;
};

constexpr matmul_pace matmul_pace_of(const matmul_choice& choice, const matmul_problem& problem) {
  const matmul_kernel& kernel = choice.use;
  const double products = problem.gated ? 2 : 1, bm = double(kernel.bm), bn = double(kernel.bn);
  const double from_l2 = (bm + products * bn) * double(problem.bytes);
  if (!is_tensor(kernel)) {
    // Tiles are written to threadgroup memory once; each simdgroup reads its rows and its columns of them.
    const double kept = (bm * double(1 + kernel.wn) + products * bn * double(1 + kernel.wm)) * double(problem.bytes);
    return {std::max({products * bm * bn * (1 + choice.overhead) / matmul_core_products,
                      kept / matmul_threadgroup_bytes(problem.family), from_l2 / matmul_core_l2_bytes}),
            (matmul_busy_multiplying + choice.overhead * matmul_busy_otherwise) / (1 + choice.overhead)};
  }
  // What a simdgroup reads of an operand for a k comes in whole lines where that lies along m or n.
  const auto lines = [&](int64_t elements, bool along_k) {
    return double(along_k ? elements * problem.bytes : matmul_ceil_div(elements * problem.bytes, 128) * 128);
  };
  const double asked = double(simdgroups_of(kernel)) * (lines(kernel.bm / kernel.wm, !problem.a_along_m) +
                                                        products * lines(kernel.bn / kernel.wn, problem.b_along_k));
  return {std::max({products * bm * bn / matmul_core_tensor_products, asked / matmul_core_l1_bytes,
                    from_l2 / matmul_core_l2_bytes}),
          matmul_busy_tensor};
}

// Of a core, for some whole tiles and some parts of others, as many at a time as it holds. No round is over before the
// longest of its threadgroups would be by itself, which takes as long as `least` of them together.
constexpr double matmul_core_time(int64_t wholes, double whole, int64_t parts, double part, int64_t held,
                                  double least) {
  const auto round = [&](double work, double longest) { return std::max(work, least * longest); };
  const int64_t rest = wholes % held, beside = std::min(parts, held - rest), after = parts - beside;
  return double(wholes / held) * round(double(held) * whole, whole) +
         round(double(rest) * whole + double(beside) * part, rest > 0     ? whole
                                                             : beside > 0 ? part
                                                                          : 0.0) +
         double(after / held) * round(double(held) * part, part) +
         (after % held > 0 ? round(double(after % held) * part, part) : 0.0);
}

// The cycles that a plan is estimated to take. Threadgroups go in turn to the core that is free first; the core that is
// busy longest decides. Split sums are written, and read by a second launch.
constexpr double matmul_time(const matmul_problem& problem, const matmul_plan& plan) {
  const matmul_kernel& kernel = plan.choice->use;
  const matmul_pace pace = matmul_pace_of(*plan.choice, problem);
  const double whole = pace.step * (double(problem.k) + plan.choice->ends);
  const double part = pace.step * (double(plan.k_per_split) + 2 * plan.choice->ends);  // twice: as counted
  const int64_t split_tiles_n = plan.splits > 1 ? plan.tiles_n - plan.whole_tiles_n : 0;
  const int64_t wholes = plan.tiles_m * plan.whole_tiles_n * problem.batch;
  const int64_t parts = plan.tiles_m * split_tiles_n * problem.batch * plan.splits;

  // Some cores are ahead: they get one more of the whole tiles. The parts go to the others, until those are ahead.
  const int64_t turns = wholes / problem.cores, ahead = wholes % problem.cores;
  const auto of_ahead = [&](int64_t of_others) {
    const auto lead = int64_t(whole / part) + 1;
    return ahead == 0 ? 0 : std::max<int64_t>(0, of_others - lead);
  };
  int64_t of_others = matmul_ceil_div(parts, problem.cores);
  while ((problem.cores - ahead) * of_others + ahead * of_ahead(of_others) < parts) ++of_others;
  const int64_t held = matmul_held(kernel, problem.bytes);
  const double least = pace.busy / double(simdgroups_of(kernel));
  double time = matmul_core_time(turns, whole, of_others, part, held, least);
  if (ahead > 0) {
    time = std::max(time, matmul_core_time(turns + 1, whole, of_ahead(of_others), part, held, least));
  }

  const double m = double(problem.m), n = double(problem.n), k = double(problem.k), batch = double(problem.batch);
  const double products = problem.gated ? 2 : 1, bandwidth = matmul_core_dram_bytes * problem.cores;
  const double moved = batch * (m * k + products * k * n + m * n) * double(problem.bytes) / bandwidth;
  const double split_columns = split_tiles_n == 0 ? 0.0 : n - double(plan.whole_tiles_n * kernel.bn);
  const double sums = double(plan.splits) * products * batch * m * split_columns * 4 / bandwidth;
  const double traffic = moved + sums;
  const double summed = sums + batch * m * split_columns * double(problem.bytes) / bandwidth;
  const double second_launch = parts == 0 ? 0.0 : std::max(matmul_launch_cycles, summed);
  const bool idle = wholes + parts < matmul_enough_groups * problem.cores || (problem.tensors && !is_tensor(kernel));
  return (std::max(time, traffic) + matmul_apart * std::min(time, traffic) + second_launch) *
         (idle ? matmul_idle_units : 1.0);
}

constexpr matmul_plan whole_plan(const matmul_choice& choice, const matmul_problem& problem) {
  const int64_t tiles_n = matmul_ceil_div(problem.n, choice.use.bn);
  return {&choice, matmul_ceil_div(problem.m, choice.use.bm), tiles_n, tiles_n, 1, std::max<int64_t>(problem.k, 1)};
}

// `plan` with k of the last columns of tiles split, into as many parts at most: parts are whole steps of the kernel, or
// whole terms.
constexpr matmul_plan split_plan(matmul_plan plan, const matmul_problem& problem, int64_t whole_tiles_n,
                                 int64_t splits) {
  const int64_t step = problem.term_k > 0 ? problem.term_k : std::max<int64_t>(plan.choice->use.bk, 64);
  splits = std::clamp<int64_t>(std::min(splits, problem.k / matmul_min_split_k), 1, matmul_max_splits);
  if (splits == 1) return plan;
  plan.whole_tiles_n = whole_tiles_n;
  plan.k_per_split = matmul_ceil_div(matmul_ceil_div(problem.k, splits), step) * step;
  plan.splits = matmul_ceil_div(problem.k, plan.k_per_split);
  return plan.splits == 1 ? whole_plan(*plan.choice, problem) : plan;
}

// The fastest plan with this row, as far as splits of k go.
constexpr matmul_plan matmul_plan_of(const matmul_choice& choice, const matmul_problem& problem) {
  matmul_plan best = whole_plan(choice, problem);
  if (choice.competes()) best.time = matmul_time(problem, best);
  if (problem.grouped || choice.use.is == matmul_kernel::packed) return best;
  const int64_t tiles = best.tiles_m * best.tiles_n * problem.batch, cores = problem.cores;
  if (!choice.competes()) {
    const int64_t simdgroups = tiles * simdgroups_of(choice.use);
    return split_plan(best, problem, 0, matmul_ceil_div(choice.fill * cores, simdgroups));
  }
  // Whole tiles for some turns of all cores, and so many parts of the others that they make up further turns.
  const auto consider = [&](int64_t whole_tiles_n) {
    const int64_t rest = (best.tiles_n - whole_tiles_n) * best.tiles_m * problem.batch;
    for (const int64_t turns : {1, 2, 3, 4, 5, 6, 8}) {
      matmul_plan plan = split_plan(whole_plan(choice, problem), problem, whole_tiles_n, turns * cores / rest);
      if (plan.splits == 1) continue;
      plan.time = matmul_time(problem, plan);
      if (plan.time < best.time) best = plan;
    }
  };
  for (int64_t turns = tiles / cores; problem.batch == 1 && turns > 0 && turns > tiles / cores - 2; --turns) {
    const int64_t whole = turns * cores / best.tiles_m;
    if (whole > 0 && whole < best.tiles_n) consider(whole);
  }
  consider(0);
  return best;
}

constexpr bool matmul_fits(const matmul_choice& choice, const matmul_problem& problem) {
  const bool layout =
      choice.layout == matmul_layout::any || problem.b_along_k == (choice.layout == matmul_layout::b_along_k);
  const matmul_plan plan = whole_plan(choice, problem);
  const int64_t groups = plan.tiles_m * plan.tiles_n * matmul_ceil_div(problem.batch, choice.use.packs);
  return (!choice.tensors || problem.tensors) && problem.cores >= choice.min_cores &&
         problem.cores <= choice.max_cores && (choice.bytes == 0 || choice.bytes == problem.bytes) && layout &&
         problem.m <= choice.max_m && problem.n <= choice.max_n && problem.batch >= choice.min_batch &&
         problem.gated == choice.gated && (!choice.tensors || problem.gathered == choice.gathered) &&
         (!problem.only_tiles || makes_tiles(choice.use)) && groups >= choice.min_groups * problem.cores;
}

// The first row that fits. Where rows compete, those after it as well: the first that is about as fast as any.
constexpr matmul_plan plan_matmul(const matmul_problem& problem) {
  matmul_plan plans[std::size(matmul_choices)] = {};
  size_t count = 0;
  for (const matmul_choice& choice : matmul_choices) {
    if (!matmul_fits(choice, problem)) continue;
    plans[count] = matmul_plan_of(choice, problem);
    if (!choice.competes()) return plans[count];
    ++count;
  }
  const matmul_plan& fastest = *std::min_element(
      plans, plans + count, [](const matmul_plan& a, const matmul_plan& b) { return a.time < b.time; });
  return *std::find_if(plans, plans + count,
                       [&](const matmul_plan& plan) { return plan.time <= matmul_about_as_fast * fastest.time; });
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
#define MPSK_TENSOR_GATHERED(dtype, type, bm, bn, wm, wn) \
  count(#dtype, {matmul_kernel::tensor_gathered, bm, bn, matmul_tensor_gathered_k, wm, wn}, false);
#define MPSK_TENSOR_GATED(dtype, type, bm, bn, wm, wn) \
  count(#dtype, {matmul_kernel::tensor_gated, bm, bn, 0, wm, wn}, true);
    MATMUL_TILE_VARIANTS(MPSK_TILE)
    MATMUL_TENSOR_VARIANTS(MPSK_TENSOR)
    MATMUL_TENSOR_GATHERED_VARIANTS(MPSK_TENSOR_GATHERED)
    MATMUL_TENSOR_GATED_VARIANTS(MPSK_TENSOR_GATED)
    MATMUL_GATED_VARIANTS(MPSK_GATED)
    MATMUL_PACKED_VARIANTS(MPSK_PACKED)
    MATMUL_SKINNY_K_VARIANTS(MPSK_SKINNY_K)
    MATMUL_SKINNY_N_VARIANTS(MPSK_SKINNY_N)
#undef MPSK_TILE
#undef MPSK_TENSOR
#undef MPSK_TENSOR_GATHERED
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
