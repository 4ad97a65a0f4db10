// The head of every metallib: where its tables begin and end.

#include "device/abi.h"

#define MPSK_SECTION(type, name)                                                \
  extern "C" __attribute__((weak, visibility("hidden"))) type __start_##name[]; \
  extern "C" __attribute__((weak, visibility("hidden"))) type __stop_##name[];

MPSK_SECTION(const mpsk_kernel, mpsk_kernels)
MPSK_SECTION(const mpsk_constant, mpsk_constants)
MPSK_SECTION(const mpsk_derive, mpsk_derived)
MPSK_SECTION(const mpsk_threadgroup_record, mpsk_threadgroup)
MPSK_SECTION(mpsk_code, mpsk_code)

extern "C" __attribute__((visibility("default"))) const mpsk_metallib_header mpsk_metallib = {
    "MPSKLIB",
    MPSK_ABI_VERSION,
    MPSK_MSL_VERSION,
    MPSK_MATH_MODE,
    MPSK_TARGET,
    __start_mpsk_kernels,
    __stop_mpsk_kernels,
    __start_mpsk_constants,
    __stop_mpsk_constants,
    __start_mpsk_derived,
    __stop_mpsk_derived,
    __start_mpsk_threadgroup,
    __stop_mpsk_threadgroup,
    __start_mpsk_code,
    __stop_mpsk_code,
};
