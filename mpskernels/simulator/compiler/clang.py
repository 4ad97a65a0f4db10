"""Runs clang: preprocessing, compiling for the host, linking a metallib."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from .errors import CompileError
from .instrument import instrument, mark_shifts
from .rewrite import rewrite

SIMULATOR = Path(__file__).resolve().parent.parent
MSL = SIMULATOR / "msl"
STDS = {"metal3.0": 300, "metal3.1": 310, "metal3.2": 320, "metal4.0": 400}
ABI_VERSION = 2  # MPSK_ABI_VERSION of device/abi.h
_TRAILER = struct.Struct("<8sIIQ")

# Metal's math modes (MSL 1.6.3), as flags of clang.
MATH_MODES = {
    "fast": [
        "-ffp-contract=fast",
        "-ffinite-math-only",
        "-fno-signed-zeros",
        "-fassociative-math",
        "-freciprocal-math",
        "-fno-trapping-math",
        "-D__MPSK_MATH_MODE_FAST__=1",
    ],
    "relaxed": [
        "-ffp-contract=fast",
        "-fno-signed-zeros",
        "-fassociative-math",
        "-freciprocal-math",
        "-fno-trapping-math",
        "-D__MPSK_MATH_MODE_RELAXED__=1",
    ],
    "safe": ["-ffp-contract=on"],
}

_LANGUAGE = [
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
    *("-Xclang", "-cl-ext=+all,-cl_khr_fp64,-__opencl_c_fp64", "-fdeclspec"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
]
# The place of a call tells the device which lanes have met, so the back end may neither merge nor copy calls.
_CODE_PLACEMENT = [
    *("-mllvm", "-enable-tail-merge=false", "-mllvm", "-disable-tail-duplicate", "-mllvm", "-disable-early-taildup"),
    *("-mllvm", "-tail-dup-placement=false"),
]
_CODE = [
    *("-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-fwrapv"),
    # A float outside an integer's range saturates, and NaN gives 0.
    "-fno-strict-float-cast-overflow",
    *_CODE_PLACEMENT,
    # A frame larger than a page touches its pages in order, so that none gets past the inaccessible one below a stack.
    "-fstack-clash-protection",
    # A division that would trap on the host becomes a fault with its source position.
    "-fsanitize=integer-divide-by-zero",
]
# What a GPU would not do for the kernel, the instrumented code must not do either: widen accesses, peel loops.
_INSTRUMENTED = [
    *("-DMPSK_INSTRUMENTED", "-fno-vectorize", "-fno-slp-vectorize", "-fno-discard-value-names"),
    "-fdebug-compilation-dir=.",  # files are named as the source names them: what is cached serves other folders too
    *("-mllvm", "-unroll-runtime=false", "-mllvm", "-unroll-allow-partial=false", "-mllvm", "-disable-vector-combine"),
    # Nothing follows from an access through null; and what two branches do is not made one thing without a place.
    *("-fno-delete-null-pointer-checks", "-mllvm", "-simplifycfg-sink-common=false"),
    *("-mllvm", "-simplifycfg-hoist-common=false"),
]
_WARNINGS = [
    *("-Wno-c++17-extensions", "-Wno-unused", "-Wno-unknown-attributes", "-Wno-pass-failed", "-Wno-psabi"),
    *("-Wno-duplicate-decl-specifier", "-Wno-nan-infinity-disabled"),
]


@functools.cache
def _tool(name: str) -> str:
    for candidate in (f"{name}-19", name):
        if path := shutil.which(candidate):
            return path
    raise CompileError(f"the simulator's compiler needs {name}-19: install it with `apt-get install {name}-19 lld-19`")


@functools.cache
def target() -> str:
    """The processor that kernels are compiled for: the newest level that this one has."""
    if platform.machine() == "aarch64":
        return "armv8-a"
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        flags = set()
    return "x86-64-v3" if {"avx2", "fma", "f16c", "bmi2"} <= flags else "x86-64-v2"


def _run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise CompileError(done.stderr.strip() or f"{command[0]} failed with status {done.returncode}")
    return done.stdout


def _flags(math_mode: str, instrumented: bool = False) -> list[str]:
    machine = f"{platform.machine()}-unknown-linux-gnu"
    flags = [*_LANGUAGE, *_CODE, "-target", machine, f"-march={target()}", *MATH_MODES[math_mode]]
    return [*flags, *_INSTRUMENTED] if instrumented else flags


def _headers() -> list[Path]:
    return sorted([*(MSL / "mpsk").glob("*.h"), SIMULATOR / "device" / "abi.h"])


def cache_folder() -> Path:
    """Where the simulator keeps what it has compiled; the folder may be missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mpskernels"


def fingerprint(math_mode: str, *texts: str) -> str:
    """A digest of this compiler, and of texts: equal where it makes the same of the same source."""
    clang = os.stat(_tool("clang++"))
    facts = [*_flags(math_mode), str(clang.st_size), str(clang.st_mtime_ns), *texts]
    digest = hashlib.sha256("\0".join(facts).encode())
    for file in [*_headers(), *sorted(MSL.iterdir()), *sorted(Path(__file__).parent.iterdir())]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _cached(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The file `<name>-<key>` in the cache, which `make` writes where it is missing."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir())
    stem, suffix = name.split(".")
    path = folder / f"{stem}-{key[:20]}.{suffix}"
    if not path.exists():
        handle, scratch = tempfile.mkstemp(dir=folder, suffix=f".{suffix}")
        os.close(handle)
        try:
            make(Path(scratch))
            os.replace(scratch, path)  # two processes may do this at once
        finally:
            Path(scratch).unlink(missing_ok=True)
    return path


def precompiled_header(math_mode: str, instrumented: bool = False) -> Path:
    """The precompiled `msl/mpsk/all.h`, made where it is missing."""
    flags = _flags(math_mode, instrumented)

    def make(output: Path) -> None:
        source = str(MSL / "mpsk" / "all.h")
        # The time of the headers is not checked: an installation may rewrite it.
        check = ["-Xclang", "-fno-pch-timestamp", "-Xclang", "-fvalidate-ast-input-files-content"]
        _run([_tool("clang++"), *flags, *check, *_WARNINGS, "-Xclang", "-emit-pch", "-c", source, "-o", str(output)])

    return _cached("msl.pch", fingerprint(math_mode, *flags, str(MSL)), make)


def preprocess(source: Path, includes: list[Path], std: str, depfile: Path | None = None, name: str = "") -> str:
    """The source with includes and macros expanded; Metal's own headers contribute only their macros."""
    version = STDS[std]
    command = [_tool("clang++"), "-E", "-x", "c++", "-std=c++17", "-undef", "-nostdinc", "-nostdinc++"]
    command += [f"-D__METAL_VERSION__={version}", "-D__METAL__=1", "-D__METAL_MACOS__=1", "-D__AIR64__=1"]
    command += ["-isystem", str(MSL), *(f"-I{path}" for path in includes)]
    if depfile:
        command += ["-MD", "-MF", str(depfile), "-MT", str(depfile.with_suffix(".o"))]
    if name:
        # From a string: messages speak of the name that the caller gave.
        text = f'#line 1 "{name}"\n' + source.read_text()
        return _run([*command, f"-I{source.parent}", "-"], input=text)
    return _run([*command, str(source)])


def compile_object(
    source: Path,
    output: Path,
    *,
    includes: list[Path] = (),
    std: str = "metal3.1",
    math_mode: str = "fast",
    depfile: Path | None = None,
    name: str = "",
) -> None:
    """Compiles one .metal file to an object file. `name` stands for the file in messages."""
    if std not in STDS:
        raise CompileError(f"unknown language version {std!r}: one of {', '.join(STDS)}")
    if math_mode not in MATH_MODES:
        raise CompileError(f"unknown math mode {math_mode!r}: one of {', '.join(MATH_MODES)}")
    text = rewrite(preprocess(source, list(includes), std, depfile, name), std)
    if keep := os.environ.get("MPSK_KEEP_REWRITTEN"):
        Path(keep).mkdir(parents=True, exist_ok=True)
        (Path(keep) / f"{source.stem}.cl").write_text(text)
    with tempfile.NamedTemporaryFile("w", suffix=".cl", dir=output.parent) as kept:
        kept.write(text)
        kept.flush()
        source = _OWN_SOURCE.format(path=kept.name, size=len(text.encode()), std=std, math_mode=math_mode)
        _compile(source + text.replace("MPSK_SOURCE", "&mpsk_own_source"), output, math_mode)


# The rewritten source goes along, so that an instrumented twin can be made of it.
_OWN_SOURCE = (
    r'__asm__(".pushsection .rodata\nmpsk_source_text: .incbin \"{path}\"\n.byte 0\n.popsection"); '
    'extern "C" __attribute__((visibility("hidden"))) const char mpsk_source_text[]; '
    'static const mpsk_source mpsk_own_source = {{mpsk_source_text, {size}, "{std}", "{math_mode}"}};\n'
)


def _compile(text: str, output: Path, math_mode: str, *, instrumented: bool = False) -> None:
    pch = precompiled_header(math_mode, instrumented)
    command = [_tool("clang++"), *_flags(math_mode, instrumented), *_WARNINGS, "-include-pch", str(pch)]
    command += ["-Xclang", "-fno-pch-timestamp", "-", "-o", str(output)]
    as_text = ["-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes"]
    _run([*command, *(as_text if instrumented else ["-c"])], input=text)


def instrumented(text: str, *, std: str, math_mode: str) -> Path:
    """A metallib of the rewritten source of a translation unit, with every access instrumented."""

    flags = _flags(math_mode, instrumented=True)

    def make(output: Path) -> None:
        with tempfile.TemporaryDirectory(dir=output.parent) as folder:
            raw, plain, watched, compiled = (
                Path(folder) / name for name in ("raw.ll", "plain.ll", "watched.ll", "watched.o")
            )
            _compile(text.replace("MPSK_SOURCE", "0"), raw, math_mode, instrumented=True)
            raw.write_text(mark_shifts(raw.read_text()))
            optimising = [flag for flag in flags if flag not in _LANGUAGE]
            _run([_tool("clang++"), *optimising, "-S", "-emit-llvm", str(raw), "-o", str(plain)])
            watched.write_text(instrument(plain.read_text(), MSL))
            # Optimised it is already; what it calls may do what the optimiser believes that it does not.
            command = [_tool("clang++"), "-O2", "-g1", "-fPIC", "-Xclang", "-disable-llvm-passes", *_CODE_PLACEMENT]
            _run([*command, "-Wno-override-module", "-c", str(watched), "-o", str(compiled)])
            link([compiled], output, std=std, math_mode=math_mode)

    return _cached("instrumented.metallib", fingerprint(math_mode, text, std, *flags), make)


def link(objects: list[Path], output: Path, *, std: str = "metal3.1", math_mode: str = "fast") -> None:
    """Links objects to a metallib: a shared object with a table of kernels, then a checksum."""
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        header, shared = Path(folder) / "header.o", Path(folder) / "metallib.so"
        command = [_tool("clang++"), "-x", "c++", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-I", str(SIMULATOR)]
        command += [f"-DMPSK_MSL_VERSION={STDS[std]}", f'-DMPSK_MATH_MODE="{math_mode}"', f'-DMPSK_TARGET="{target()}"']
        _run([*command, "-c", str(Path(__file__).parent / "metallib.cpp"), "-o", str(header)])
        linker = ["-shared", "-fuse-ld=lld", "-nostartfiles", "-nostdlib"]
        _run([_tool("clang++"), *linker, str(header), *map(str, objects), "-o", str(shared), "-lm", "-lgcc"])
        code = shared.read_bytes()
        trailer = _TRAILER.pack(b"MPSKEND\0", ABI_VERSION, zlib.crc32(code), len(code))
        finished = Path(folder) / "finished"
        finished.write_bytes(code + trailer)
        finished.chmod(0o644)
        os.replace(finished, output)
