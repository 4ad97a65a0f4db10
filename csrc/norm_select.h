// Which norm kernel runs: the first row that fits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "norm_params.h"
#include "norm_variants.h"

namespace mpsk {

struct norm_choice {
  int family;               // this Apple GPU family and newer ones
  int64_t max_columns;      // of a row
  std::string_view kernel;  // named <kernel>_<dtype><tile>
  std::string_view tile;
  int64_t threads;  // the most that share a row
  int64_t columns_per_thread;
  int64_t registers;  // of 32 bits, that arrays may take in each thread
  std::string_view evidence;
};

inline constexpr norm_choice norm_forward_choices[] = {
    {.family = 7,
     .max_columns = 1024,
     .kernel = "norm_row",
     .tile = "_d1024",
     .threads = 256,
     .columns_per_thread = 4,
     .registers = 32,
     .evidence = "unmeasured: one load of four columns for each thread, so that a row of 128 fills a simdgroup"},
    {.family = 7,
     .max_columns = 8192,
     .kernel = "norm_row",
     .tile = "_d8192",
     .threads = 512,
     .columns_per_thread = 16,
     .registers = 64,
     .evidence = "unmeasured: four loads under way in each thread, and threadgroups a quarter as large at the barrier; "
                 "512 threads leave each 104 registers, of which 40 are for addresses and sums"},
    {.family = 7,
     .max_columns = 16384,
     .kernel = "norm_row",
     .tile = "_d16384",
     .threads = 1024,
     .columns_per_thread = 16,
     .registers = 32,
     .evidence = "unmeasured: 1024 threads leave each 52 registers, of which 20 are for addresses and sums"},
    {.family = 7,
     .max_columns = std::numeric_limits<int64_t>::max(),
     .kernel = "norm_loop",
     .tile = "",
     .threads = norm_row_threads,
     .columns_per_thread = 16,
     .registers = 0,
     .evidence = "unmeasured: the row exceeds 1024 threads x 16 values"},
};

inline constexpr norm_choice norm_backward_choices[] = {
    {.family = 7,
     .max_columns = 4096,
     .kernel = "norm_backward_row",
     .tile = "_d4096",
     .threads = 1024,
     .columns_per_thread = 4,
     .registers = 32,
     .evidence = "unmeasured: as wide as a threadgroup can be, so that few parts have many loads under way"},
    {.family = 7,
     .max_columns = 8192,
     .kernel = "norm_backward_row",
     .tile = "_d8192",
     .threads = 1024,
     .columns_per_thread = 8,
     .registers = 32,
     .evidence = "unmeasured: two rows and two sums in float32 take the 32 registers that there are"},
    {.family = 7,
     .max_columns = 16384,
     .kernel = "norm_backward_row",
     .tile = "_d16384",
     .threads = 1024,
     .columns_per_thread = 16,
     .registers = 32,
     .evidence = "unmeasured: two sums take the 32 registers that there are, one sum leaves 16 for two rows of half "
                 "precision; what is not kept is read again at once, by the same threadgroup"},
    {.family = 7,
     .max_columns = std::numeric_limits<int64_t>::max(),
     .kernel = "norm_backward_loop",
     .tile = "",
     .threads = norm_row_threads,
     .columns_per_thread = 4,
     .registers = 0,
     .evidence = "unmeasured: the sums of the row exceed 1024 threads x 16 values"},
};

template <size_t count>
constexpr const norm_choice& choose_norm(const norm_choice (&choices)[count], int family, int64_t columns) {
  for (const norm_choice& choice : choices) {
    if (family >= choice.family && columns <= choice.max_columns) return choice;
  }
  return choices[count - 1];
}

// A choice can only name kernels that exist, and rows that they hold.
constexpr bool norm_fits(const norm_choice& choice, std::string_view dtype) {
  struct {
    std::string_view kernel, dtype, tile;
    int64_t columns, threads;
  } constexpr variants[] = {
#define MPSK_ROW(dtype, type, columns, threads) {"norm_row", #dtype, "_d" #columns, columns, threads},
#define MPSK_LOOP(dtype, type) {"norm_loop", #dtype, "", std::numeric_limits<int64_t>::max(), norm_row_threads},
      NORM_ROW_VARIANTS(MPSK_ROW) NORM_LOOP_VARIANTS(MPSK_LOOP)
#undef MPSK_ROW
#undef MPSK_LOOP
#define MPSK_ROW(dtype, type, columns, threads) {"norm_backward_row", #dtype, "_d" #columns, columns, threads},
#define MPSK_LOOP(dtype, type) \
  {"norm_backward_loop", #dtype, "", std::numeric_limits<int64_t>::max(), norm_row_threads},
          NORM_BACKWARD_ROW_VARIANTS(MPSK_ROW) NORM_BACKWARD_LOOP_VARIANTS(MPSK_LOOP)
#undef MPSK_ROW
#undef MPSK_LOOP
  };
  for (const auto& variant : variants) {
    if (variant.kernel == choice.kernel && variant.dtype == dtype && variant.tile == choice.tile) {
      const int64_t in_registers = choice.columns_per_thread * choice.threads;
      return choice.max_columns <= variant.columns && choice.threads == variant.threads &&
             (variant.tile.empty() || in_registers == variant.columns);
    }
  }
  return false;
}
template <size_t count>
constexpr bool norm_choices_fit(const norm_choice (&choices)[count]) {
  for (const norm_choice& choice : choices) {
    for (std::string_view dtype : {"f32", "f16", "bf16"}) {
      if (!norm_fits(choice, dtype)) return false;
    }
  }
  return true;
}
static_assert(norm_choices_fit(norm_forward_choices) && norm_choices_fit(norm_backward_choices));

// What a call is, as far as it decides how its rows are divided.
struct norm_work {
  int cores;
  int64_t rows;  // of a sample
  int64_t samples;
  int64_t columns;
  int64_t element_bytes;
  int64_t parameters;       // values for each column that the kernel needs of them: a factor, an addend
  int64_t parameter_bytes;  // for each column, in memory
  bool narrow;              // parameters stay as they are in memory
  int64_t taken;            // tensors whose elements of a row are held at a time
  int64_t moved;            // tensors that are read or written
  int64_t sums;             // for the parameters, backward
};

// How rows are divided: `parts` of `rows` of a sample, which the same simdgroups take in turn, `at_once` in a
// threadgroup. Which arrays stay in registers, beside the row itself or the sums: see norm_constant.
struct norm_plan {
  int64_t simdgroups;  // of a row
  int64_t at_once;
  int64_t rows;
  int64_t parts;  // of a sample
  bool kept;
  bool held;
  bool ahead;
};

constexpr int64_t norm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t norm_within(int64_t value, int64_t least, int64_t most) {
  return value > most ? most : value < least ? least : value;
}
constexpr bool norm_take(int64_t& room, int64_t registers) {
  if (registers > room) return false;
  room -= registers;
  return true;
}

// Threadgroups that fill the chip at once. Unmeasured: a core is full with 24 simdgroups, as 832 threads of 64
// registers fit into it and as 24 hide the latency of arithmetic; a larger threadgroup fills it alone. Chips have down
// to four fifths of the cores of the largest of their class, which must not be left with a threadgroup over.
constexpr int64_t norm_full_groups(int cores, int64_t simdgroups_of_group) {
  return norm_within(24 / simdgroups_of_group, 1, 24) * cores * 4 / 5;
}

// Forward: each part reads the parameters once. As soon as the chip is full, parts become longer instead of more, up to
// where the parameters are 1/34 of what is read and written, so that less than 1.03 times the necessary is asked for;
// up to twice that where then all run at once. It takes 34 rows for each part (17 of rms_norm in one dtype): rows that
// are too few for the cores stay below.
constexpr norm_plan plan_norm_forward(const norm_choice& choice, const norm_work& work) {
  norm_plan plan{};
  const int64_t columns = choice.columns_per_thread;
  plan.simdgroups = norm_within(norm_ceil_div(work.columns, columns * 32), 1, choice.threads / 32);
  int64_t room = choice.registers - columns;
  plan.kept = !choice.tile.empty();
  const int64_t parameters = columns * work.parameters * (work.narrow ? work.element_bytes : 4) / 4;
  plan.held = plan.kept && work.parameters > 0 && norm_take(room, parameters);
  plan.rows = 1;
  if (plan.held) {
    const int64_t group = norm_within(norm_shared_threads / 32 / plan.simdgroups, 1, work.rows * work.samples);
    const int64_t full = norm_full_groups(work.cores, group * plan.simdgroups) * group;
    const int64_t enough = norm_ceil_div(34 * work.parameter_bytes, work.moved * work.element_bytes);
    const int64_t at_once = norm_ceil_div(work.rows * work.samples, full);
    plan.rows = norm_within(at_once <= 2 * enough ? at_once : enough, 1, work.rows);
  }
  plan.ahead = plan.rows > 1 && norm_take(room, columns * work.taken * work.element_bytes / 4);
  plan.parts = norm_ceil_div(work.rows, plan.rows);
  plan.at_once = plan.kept ? norm_within(norm_shared_threads / 32 / plan.simdgroups, 1, plan.parts * work.samples) : 1;
  return plan;
}

// Backward: each threadgroup leaves its sums for the parameters, which are written and read in float32. There are as
// many threadgroups, as wide as they can be, as fill the chip, but not so many that what they write passes 1/36 of the
// rest; then again 8, and one for every second core, in any case. Unmeasured: half of the cores can load all that
// memory gives, at 20 to 24 GB/s each.
constexpr norm_plan plan_norm_backward(const norm_choice& choice, const norm_work& work) {
  norm_plan plan{};
  const int64_t columns = choice.columns_per_thread;
  const bool row = !choice.tile.empty();
  plan.simdgroups = norm_within(norm_ceil_div(work.columns, columns * 32), 1, choice.threads / 32);
  int64_t room = choice.registers - columns * work.sums;
  const int64_t elements = columns * work.taken * work.element_bytes / 4;
  plan.kept = row && norm_take(room, elements);
  plan.held = row && work.parameters > 0 && norm_take(room, columns);
  plan.rows = 1;
  const int64_t shared = work.sums > 0 ? choice.threads : norm_shared_threads;
  plan.at_once = row ? norm_within(shared / 32 / plan.simdgroups, 1, work.rows) : 1;
  if (work.sums > 0) {
    const int64_t full = norm_full_groups(work.cores, plan.at_once * plan.simdgroups);
    const int64_t few = work.moved * work.element_bytes * work.rows * work.samples / (36 * 4 * work.sums);
    const int64_t groups = norm_within(few, work.cores < 16 ? 8 : work.cores / 2, full);
    const int64_t of_sample = norm_within(groups / work.samples, 1, norm_ceil_div(work.rows, plan.at_once));
    plan.rows = norm_ceil_div(work.rows, of_sample * plan.at_once);
    if (!row) plan.rows = norm_within(plan.rows, 1, norm_loop_rows);
  }
  plan.ahead = plan.rows > 1 && plan.kept && norm_take(room, elements);
  // Threadgroups of one sample: the last parts may have no rows.
  plan.parts = norm_ceil_div(norm_ceil_div(work.rows, plan.rows), plan.at_once) * plan.at_once;
  return plan;
}

}  // namespace mpsk
