// What depends on the processor that the simulator itself runs on.
#pragma once

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mpsk::device {

// A GPU flushes fp32 denormals; conversions to and from half keep half denormals on both.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() : saved_(__builtin_aarch64_get_fpcr64()) { __builtin_aarch64_set_fpcr64(saved_ | 1ull << 24); }
  ~FlushDenormals() { __builtin_aarch64_set_fpcr64(saved_); }

 private:
  unsigned long long saved_;
#endif
};

// Whether this processor runs code compiled for `target`, as the compiler's driver names it.
inline bool host_supports(const char* target) {
#if defined(__x86_64__)
  if (std::strcmp(target, "x86-64-v3") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  return std::strcmp(target, "x86-64-v2") == 0;
#elif defined(__aarch64__)
  return std::strcmp(target, "armv8-a") == 0;
#endif
}

}  // namespace mpsk::device
