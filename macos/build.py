"""The wheel for macOS, built without a Mac: `python -m macos.build [torch series ...]`, all supported ones by default.

csrc/*.mm is compiled by the clang inside PyPI's ziglang against the headers of torch's macOS wheel and, in the place of
Apple's SDK, our declarations in macos/include. Every library is linked by a list of the symbols that published binaries
import from it (the system's) or export (torch's), so that each name is bound to the library it is found in on a Mac.
"""

import functools
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

from macos import packages
from macos.packages import BUILD, ROOT

TARGET = "aarch64-macos.14.0"
OBJCXX = [
    *("-target", TARGET, "-x", "objective-c++", "-std=c++20", "-fblocks", "-fno-objc-arc", "-O2", "-g0"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wgnu", "-Werror", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_C"),
    # ziglang brings a libc++ of its own to link; ours is that of macOS 14, in its own visibility and without what it
    # lacks. Sized deallocation is off as in Apple's compiler.
    *("-fno-sized-deallocation", "-U_LIBCPP_DISABLE_VISIBILITY_ANNOTATIONS"),
    *("-U_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS", "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1"),
    *(f"-I{ROOT / 'metal'}", f"-I{ROOT / 'csrc'}", "-isystem", str(ROOT / "macos" / "include")),
]
METAL = "/System/Library/Frameworks/Metal.framework/Versions/A/Metal"
SOURCES = sorted((ROOT / "csrc").rglob("*.mm"))


def zig(*arguments: object, check: bool = False, **options: object) -> subprocess.CompletedProcess:
    caches = {name: str(BUILD / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | caches, text=True, **options)
    if check and done.returncode:
        sys.exit(f"macos: the errors above came from: {' '.join(command)}")
    return done


def torch_flags(series: str) -> list[str]:
    include = packages.torch_headers(series)
    folders = [include, include / "torch/csrc/api/include", sysconfig.get_paths()["include"]]
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def compile_object(source: Path, output: Path, flags: list[str]) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    zig("c++", *OBJCXX, *flags, "-c", source, "-o", output, check=True)
    return output


def objects(series: str) -> list[Path]:
    jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    flags = torch_flags(series)
    with ThreadPoolExecutor(jobs) as pool:  # ziglang remembers what it compiled
        outputs = [BUILD / series / f"{source.relative_to(ROOT)}.o" for source in SOURCES]
        return list(pool.map(lambda pair: compile_object(*pair, flags), zip(SOURCES, outputs, strict=True)))


@functools.cache
def system_libraries() -> dict[str, set[str]]:
    """What macOS 14 surely has: the symbols that published binaries for it import from each library of the system.
    Metal's classes are added by name, since mlx looks them up at run time rather than importing them."""
    symbols: dict[str, set[str]] = {}
    for name in packages.WHEELS:
        for binary in packages.binaries(name).values():
            for library, names in binary["imports"].items():
                if library.startswith(("/usr/lib/", "/System/")):
                    symbols.setdefault(library, set()).update(names)
            if name.startswith("mlx-metal"):
                classes = {f"_OBJC_CLASS_$_{name}" for name in binary["classes"] if name.startswith("MTL")}
                symbols.setdefault(METAL, set()).update(classes)
    return symbols


@functools.cache
def torch_libraries(series: str) -> dict[str, set[str]]:
    binaries = packages.binaries(packages.TORCH[series])
    return {f"@rpath/{Path(path).name}": set(facts["exports"]) for path, facts in binaries.items()}


def link(inputs: list[Path], output: Path, libraries: dict[str, set[str]]) -> None:
    stubs = []
    for library, symbols in libraries.items():
        stub = output.parent / "stubs" / f"{PurePosixPath(library).name}.tbd"
        stub.parent.mkdir(parents=True, exist_ok=True)
        names = ", ".join(f"'{name}'" for name in sorted(symbols))
        where = "targets: [ arm64-macos ]"
        stub.write_text(
            f"--- !tapi-tbd\ntbd-version: 4\n{where}\ninstall-name: '{library}'\n"
            f"exports:\n  - {where}\n    symbols: [ {names} ]\n...\n"
        )
        stubs.append(stub)
    # Python's own symbols are looked up in the process. libc++ is the system's: hence cc, which adds none.
    dynamic = ["-Wl,-undefined,dynamic_lookup", "-Wl,-rpath,@loader_path/../torch/lib"]
    zig("cc", "-target", TARGET, "-shared", "-o", output, *inputs, *stubs, *dynamic, check=True)


def module(series: str) -> Path:
    """mpskernels._C for one torch series."""
    output = BUILD / series / "_C.so"
    frameworks = ("/Metal", "/Foundation", "/CoreFoundation", "/libc++.1.dylib", "/libobjc.A.dylib")
    system = {name: symbols for name, symbols in system_libraries().items() if name.endswith(frameworks)}
    ours = {
        name: symbols
        for name, symbols in torch_libraries(series).items()
        if name.endswith(("/libc10.dylib", "/libtorch_cpu.dylib", "/libtorch_python.dylib"))
    }
    link(objects(series), output, system | ours)
    return output


def wheel(series: str) -> Path:
    """Where torch keeps no layout across its series, each has its own wheel, told apart by the local version."""
    on_mac = runpy.run_path(str(ROOT / "setup.py"))

    class BuildModule(build_ext):
        def run(self) -> None:
            root = Path(self.build_lib) / "mpskernels"
            (root / "metal").mkdir(parents=True, exist_ok=True)
            (root / "_C.so").write_bytes(module(series).read_bytes())
            for source in (ROOT / "metal").glob("*.metal"):
                (root / "metal" / source.name).write_text(on_mac["flatten"](source, set()) + "\n")
            # No metallib: the kernels are compiled where they run.
            (root / "build.json").write_text(json.dumps({"torch": series, "metallib": None}, indent=2) + "\n")

        def get_outputs(self) -> list[str]:
            return []

    scratch = BUILD / series / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.chdir(ROOT)
    logging.disable(logging.WARNING)  # of files that a build for Linux would have, and of setup.py, which is not used
    warnings.filterwarnings("ignore", "setup.py install is deprecated")
    distribution = setup(
        script_args=["-qq", "bdist_wheel"],
        options={
            "build": {"build_base": str(scratch / "build")},
            "egg_info": {"egg_base": str(scratch), "tag_build": f"+torch{series}"},
            "bdist_wheel": {"plat_name": "macosx_14_0_arm64", "bdist_dir": str(scratch / "files")},
        },
        ext_modules=[Extension("mpskernels._C", sources=[])],
        cmdclass={"build_ext": BuildModule, "build_py": on_mac["BuildForMac"]},
        install_requires=[f"torch=={series}.*"],
    )
    [(_, _, file)] = distribution.dist_files
    return ROOT / file


if __name__ == "__main__":
    for chosen in sys.argv[1:] or packages.TORCH:
        built = wheel(chosen)
        print(f"{built.relative_to(ROOT)}  {built.stat().st_size:,} bytes, for torch {chosen}")
