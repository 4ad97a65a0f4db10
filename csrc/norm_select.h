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
  int64_t columns_per_thread;
  std::string_view evidence;
};

inline constexpr norm_choice norm_forward_choices[] = {
    {.family = 7,
     .max_columns = 1024,
     .kernel = "norm_row",
     .tile = "_d4096",
     .columns_per_thread = 4,
     .evidence = "unmeasured: one load of four columns for each thread, so that a row of 128 fills a simdgroup"},
    {.family = 7,
     .max_columns = 16384,
     .kernel = "norm_row",
     .tile = "_d16384",
     .columns_per_thread = 16,
     .evidence =
         "unmeasured: four loads under way in each thread, and threadgroups a quarter as large at the barrier, of "
         "which a core holds more; 16 registers are few of the 52 that the longest rows leave"},
    {.family = 7,
     .max_columns = std::numeric_limits<int64_t>::max(),
     .kernel = "norm_loop",
     .tile = "",
     .columns_per_thread = 16,
     .evidence = "unmeasured: the row exceeds 1024 threads x 16 values"},
};

inline constexpr norm_choice norm_backward_choices[] = {
    {.family = 7,
     .max_columns = 4096,
     .kernel = "norm_backward_row",
     .tile = "_d4096",
     .columns_per_thread = 4,
     .evidence = "unmeasured: two rows, two sums and the factor take 20 registers; several times that leave no room"},
    {.family = 7,
     .max_columns = 8192,
     .kernel = "norm_backward_row",
     .tile = "_d8192",
     .columns_per_thread = 8,
     .evidence = "unmeasured: two rows and two sums take 32 of the 52 registers that a row of 1024 threads leaves"},
    {.family = 7,
     .max_columns = std::numeric_limits<int64_t>::max(),
     .kernel = "norm_backward_loop",
     .tile = "",
     .columns_per_thread = 4,
     .evidence = "unmeasured: the row exceeds 1024 threads x 8 values"},
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
    int64_t columns;
  } constexpr variants[] = {
#define MPSK_ROW(dtype, type, columns) {"norm_row", #dtype, "_d" #columns, columns},
#define MPSK_LOOP(dtype, type) {"norm_loop", #dtype, "", std::numeric_limits<int64_t>::max()},
      NORM_ROW_VARIANTS(MPSK_ROW) NORM_LOOP_VARIANTS(MPSK_LOOP)
#undef MPSK_ROW
#undef MPSK_LOOP
#define MPSK_ROW(dtype, type, columns) {"norm_backward_row", #dtype, "_d" #columns, columns},
#define MPSK_LOOP(dtype, type) {"norm_backward_loop", #dtype, "", std::numeric_limits<int64_t>::max()},
          NORM_BACKWARD_ROW_VARIANTS(MPSK_ROW) NORM_BACKWARD_LOOP_VARIANTS(MPSK_LOOP)
#undef MPSK_ROW
#undef MPSK_LOOP
  };
  for (const auto& variant : variants) {
    if (variant.kernel == choice.kernel && variant.dtype == dtype && variant.tile == choice.tile) {
      const int64_t in_registers = choice.columns_per_thread * norm_row_threads;
      return choice.max_columns <= variant.columns && (variant.tile.empty() || in_registers == variant.columns);
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

// How the backward pass divides the rows of a sample into parts, of which each leaves its sums for the parameters.
// Unmeasured: enough parts for the cores, and so few that their sums are few bytes beside the rows: 64 as soon as there
// are as many rows, then at least 8 rows each, and no more parts than make 2^20 sums, within 128 and 1024.
constexpr int64_t norm_rows_per_part(int64_t rows, int64_t samples, int64_t columns, bool loop) {
  const auto within = [](int64_t value, int64_t least, int64_t most) {
    return value < least ? least : value > most ? most : value;
  };
  const int64_t most = within((int64_t{1} << 20) / columns, 128, 1024);
  const int64_t parts_per_sample = within(within(rows * samples / 8, 64, most) / samples, 1, rows);
  const int64_t rows_per_part = (rows + parts_per_sample - 1) / parts_per_sample;
  return loop && rows_per_part > norm_loop_rows ? norm_loop_rows : rows_per_part;
}

}  // namespace mpsk
