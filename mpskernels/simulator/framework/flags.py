"""Compiler and linker flags for Objective-C++ against this framework: for its own sources and for the Metal glue.

Plain data: nothing here imports torch, so a build script can read it before torch is installed.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent

COMPILER = "clang++-19"

# Objective-C++ as GNUstep wants it.
OBJCXX = [
    "-x",
    "objective-c++",
    "-std=c++20",
    "-fblocks",
    "-fobjc-runtime=gcc",
    "-fconstant-string-class=NSConstantString",
    "-DGNUSTEP",
    "-DGNUSTEP_BASE_LIBRARY=1",
    "-DGNU_RUNTIME=1",
]
CXX = ["-x", "c++", "-std=c++20", "-fblocks"]
COMMON = ["-O2", "-g1", "-fPIC", "-fvisibility-inlines-hidden", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Werror"]

# libobjc's headers lie in gcc's own include folder, whose other files must not shadow clang's: hence -idirafter.
OBJC_HEADERS = sorted(str(path.parent.parent) for path in Path("/usr/lib/gcc").glob("*/*/include/objc/objc.h"))
INCLUDES = [
    "-I" + str(HERE / "include"),
    "-isystem",
    "/usr/include/GNUstep",
    *[flag for path in OBJC_HEADERS[-1:] for flag in ("-idirafter", path)],
]

# Every shared object that holds Objective-C++ code links its own copy of this object file: see the source.
PERSONALITY_SOURCE = HERE / "personality.cpp"

LIBRARIES = ["-lgnustep-base", "-lobjc", "-lBlocksRuntime"]
