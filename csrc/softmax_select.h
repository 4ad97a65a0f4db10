// Which softmax kernel runs: the first row that fits.
#pragma once

#include <cstdint>
#include <iterator>
#include <limits>

#include "softmax_params.h"

namespace mpsk {

struct softmax_choice {
  int family;                  // this Apple GPU family and newer ones
  int64_t max_columns;         // of a row
  bool row;                    // kept in registers, or walked over twice
  int64_t columns_per_thread;  // that are under way at once; 0: 16 bytes of them
  const char* evidence;
};

inline constexpr softmax_choice softmax_choices[] = {
    {.family = 7,
     .max_columns = 1024,
     .row = true,
     .columns_per_thread = 0,
     .evidence = "unmeasured: one load of 16 bytes for each thread, so that short rows fill a simdgroup"},
    {.family = 7,
     .max_columns = 16 * softmax_row_threads,
     .row = true,
     .columns_per_thread = 16,
     .evidence = "unmeasured: 16 registers are few of the 52 that the longest rows leave"},
    {.family = 7,
     .max_columns = std::numeric_limits<int64_t>::max(),
     .row = false,
     .columns_per_thread = 16,
     .evidence = "unmeasured: the row exceeds 1024 threads x 16 values"},
};

constexpr const softmax_choice& choose_softmax(int family, int64_t columns) {
  for (const softmax_choice& choice : softmax_choices) {
    if (family >= choice.family && columns <= choice.max_columns) return choice;
  }
  return *(std::end(softmax_choices) - 1);
}

}  // namespace mpsk
