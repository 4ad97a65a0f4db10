// What each simulated chip answers about itself. GPU cores: of its largest version.
#pragma once

#include <cstddef>
#include <string_view>

namespace mpsk {

struct Chip {
  std::string_view key;      // as MPSK_SIMULATE spells it
  const char* name;          // MTLDevice.name
  const char* architecture;  // MTLDevice.architecture.name
  unsigned apple_family;     // the n of MTLGPUFamilyApple<n>
  unsigned gpu_cores;
  unsigned memory_gib;
  double bandwidth_gb_per_s;  // DRAM, from Apple's data sheets
};

inline constexpr Chip chips[] = {
    {"m1", "Apple M1", "applegpu_g13g", 7, 8, 16, 68},
    {"m1pro", "Apple M1 Pro", "applegpu_g13s", 7, 16, 32, 205},
    {"m1max", "Apple M1 Max", "applegpu_g13c", 7, 32, 64, 410},
    {"m1ultra", "Apple M1 Ultra", "applegpu_g13d", 7, 64, 128, 819},
    {"m2", "Apple M2", "applegpu_g14g", 8, 10, 24, 102},
    {"m2pro", "Apple M2 Pro", "applegpu_g14s", 8, 19, 32, 205},
    {"m2max", "Apple M2 Max", "applegpu_g14c", 8, 38, 96, 410},
    {"m2ultra", "Apple M2 Ultra", "applegpu_g14d", 8, 76, 192, 819},
    {"m3", "Apple M3", "applegpu_g15g", 9, 10, 24, 102},
    {"m3pro", "Apple M3 Pro", "applegpu_g15s", 9, 18, 36, 154},
    {"m3max", "Apple M3 Max", "applegpu_g15c", 9, 40, 128, 410},
    {"m3ultra", "Apple M3 Ultra", "applegpu_g15d", 9, 80, 512, 819},
    {"m4", "Apple M4", "applegpu_g16g", 9, 10, 32, 120},
    {"m4pro", "Apple M4 Pro", "applegpu_g16s", 9, 20, 64, 273},
    {"m4max", "Apple M4 Max", "applegpu_g16c", 9, 40, 128, 546},
    {"m5", "Apple M5", "applegpu_g17g", 10, 10, 32, 153},
    {"m5pro", "Apple M5 Pro", "applegpu_g17s", 10, 20, 64, 307},
    {"m5max", "Apple M5 Max", "applegpu_g17c", 10, 40, 128, 614},
};

// The chip that MPSK_SIMULATE names; m4 where it is unset. Throws std::runtime_error for an unknown name.
const Chip& chip();

// What a Mac with that much memory lets the GPU use, and the largest single buffer.
inline size_t recommended_working_set(const Chip& c) { return (size_t{c.memory_gib} << 30) / 4 * 3; }
inline size_t max_buffer_length(const Chip& c) { return (size_t{c.memory_gib} << 30) / 16 * 9; }

}  // namespace mpsk
