// Which norm kernel runs: the first row that fits.
#pragma once

#include <cstdint>
#include <iterator>
#include <limits>
#include <string_view>

#include "norm_params.h"
#include "norm_variants.h"

namespace mpsk {

struct rms_norm_choice {
  int family;               // this Apple GPU family and newer ones
  int64_t max_columns;      // of a row
  std::string_view kernel;  // named <kernel>_<dtype><tile>
  std::string_view tile;
  int64_t columns_per_thread;
  std::string_view evidence;
};

inline constexpr rms_norm_choice rms_norm_choices[] = {
    {.family = 7,
     .max_columns = 1024,
     .kernel = "rms_norm_row",
     .tile = "_d4096",
     .columns_per_thread = 4,
     .evidence = "unmeasured: one load of four columns for each thread, so that a row of 128 fills a simdgroup"},
    {.family = 7,
     .max_columns = 16384,
     .kernel = "rms_norm_row",
     .tile = "_d16384",
     .columns_per_thread = 16,
     .evidence =
         "unmeasured: four loads under way in each thread, and threadgroups a quarter as large at the barrier, of "
         "which a core holds more; 16 registers are few of the 52 that the longest rows leave"},
    {.family = 7,
     .max_columns = std::numeric_limits<int64_t>::max(),
     .kernel = "rms_norm_loop",
     .tile = "",
     .columns_per_thread = 16,
     .evidence = "unmeasured: the row exceeds 1024 threads x 16 values"},
};

constexpr const rms_norm_choice& choose_rms_norm(int family, int64_t columns) {
  for (const rms_norm_choice& choice : rms_norm_choices) {
    if (family >= choice.family && columns <= choice.max_columns) return choice;
  }
  return *(std::end(rms_norm_choices) - 1);
}

// A choice can only name kernels that exist, and rows that they hold.
constexpr bool rms_norm_fits(const rms_norm_choice& choice, std::string_view dtype) {
  struct {
    std::string_view kernel, dtype, tile;
    int64_t columns;
  } constexpr variants[] = {
#define MPSK_ROW(dtype, type, columns) {"rms_norm_row", #dtype, "_d" #columns, columns},
#define MPSK_LOOP(dtype, type) {"rms_norm_loop", #dtype, "", std::numeric_limits<int64_t>::max()},
      RMS_NORM_ROW_VARIANTS(MPSK_ROW) RMS_NORM_LOOP_VARIANTS(MPSK_LOOP)
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
static_assert([] {
  for (const rms_norm_choice& choice : rms_norm_choices) {
    for (std::string_view dtype : {"f32", "f16", "bf16"}) {
      if (!rms_norm_fits(choice, dtype)) return false;
    }
  }
  return true;
}());

}  // namespace mpsk
