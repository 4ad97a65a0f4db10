"""The native build of mpskernels: one ninja file for the glue, the metallib and, on Linux, the software Metal device.

`torch.utils.cpp_extension` refuses Objective-C++ on Linux, so the build step is our own. `python setup.py build_ext
--inplace` and `pip install -e .` write next to the sources, `pip install .` into the wheel; ninja decides what is out
of date, and MAX_JOBS limits how much it runs at once.
"""

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SIMULATOR = HERE / "mpskernels" / "simulator"
MACOS = platform.system() == "Darwin"
DEVICE = "simulator/lib/libmpsk_metal.so"
METAL_STD, METAL4_STD = "metal3.1", "metal4.0"
NEEDS_METAL4 = "#include <metal_tensor>"  # in a source
# The oldest macOS for each: Metal refuses a library on an older one. With 26.2 came what MPP's products need.
MACOS_FOR = {METAL_STD: "14.0", METAL4_STD: "26.2"}


def torch_root() -> Path:
    """Where torch lies. It is not imported: that costs seconds, and a build that has nothing to do should take none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("mpskernels builds against torch: pip install torch==2.13.0, then build with --no-build-isolation")
    return Path(spec.origin).parent


def torch_minor() -> str:
    """The release series that the build is tied to, such as 2.13: torch keeps no C++ ABI across series."""
    return ".".join(importlib.metadata.version("torch").split(".")[:2])


def program(name: str, remedy: str) -> str:
    path = shutil.which(name)
    if path is None:
        sys.exit(f"mpskernels needs {name}, which is not installed; try: {remedy}")
    return path


def flatten(source: Path, seen: set[Path]) -> str:
    """A .metal file with our own headers in the place of their includes, each once: a text that compiles by itself, and
    whose errors still name the file and line they come from. Own includes may thus depend on no #if."""
    seen.add(source)
    name, lines = source.relative_to(HERE), source.read_text().splitlines()
    text = [f'#line 1 "{name}"']
    for number, line in enumerate(lines, 1):
        if include := re.match(r'#include "(.+)"', line):
            header = HERE / "metal" / include[1]
            text += [] if header in seen else [flatten(header, seen)]
            text.append(f'#line {number + 1} "{name}"')
        else:
            text.append("" if line == "#pragma once" else line)
    return "\n".join(text)


class Build:
    """Collects ninja edges. What an installed package needs is built under `root`, everything else in `scratch`."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root / "mpskernels"
        self.scratch = scratch
        self.outputs: list[Path] = []
        self.lines: list[str] = []
        torch, python = torch_root(), sysconfig.get_paths()
        includes = [
            torch / "include",
            torch / "include/torch/csrc/api/include",
            python["include"],
            python["platinclude"],
        ]
        includes = " ".join(f"-isystem {path}" for path in dict.fromkeys(map(str, includes)))
        includes = f"-I{HERE / 'metal'} -I{HERE / 'csrc'} {includes}"
        torch_libs = f"-L{torch / 'lib'} -ltorch -ltorch_cpu -lc10"
        if MACOS:
            target = "-arch arm64 -mmacosx-version-min=14.0"
            self.cxx = program("clang++", "xcode-select --install")
            # A newer Xcode may warn of what none of us has seen: that must fail our checks, but not an installation.
            warnings = "-Wall -Wextra -Wshadow" + (" -Werror" if os.environ.get("CI") else "")
            objcxx = f"{target} -std=c++20 -fno-objc-arc -O2 {warnings} {includes}"
            self.flags = {".mm": objcxx}
            self.ldflags = (
                f"{target} -bundle -undefined dynamic_lookup {torch_libs} "
                "-framework Metal -framework Foundation -Wl,-rpath,@loader_path/../torch/lib"
            )
            self.python_libs = "-ltorch_python"
        else:
            framework = runpy.run_path(str(SIMULATOR / "framework" / "flags.py"))
            self.cxx = program(framework["COMPILER"], "sudo apt-get install clang-19 lld-19")
            common = [*framework["COMMON"], *framework["WARNINGS"], *framework["INCLUDES"], includes]
            self.flags = {".mm": " ".join(framework["OBJCXX"] + common), ".cpp": " ".join(framework["CXX"] + common)}
            self.ldflags = f"-shared -fuse-ld=lld-19 -Wl,-z,defs {torch_libs} {' '.join(framework['LIBRARIES'])}"
            # Python itself provides its C API, so only the modules may leave symbols open.
            self.python_libs = "-ltorch_python -Wl,-z,undefs"
        self.rule("cxx", "$flags -MMD -MF $out.d -c $in -o $out", command=self.cxx, depfile="$out.d", deps="gcc")
        self.rule("link", "$in -o $out $flags", command=self.cxx)
        if not MACOS:
            [self.personality] = self.objects([framework["PERSONALITY_SOURCE"]])

    def rule(self, name: str, arguments: str, *, command: str, **variables: str) -> None:
        self.lines += [f"rule {name}", f"  command = {command} {arguments}", f"  description = {name} $out"]
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]

    def edge(
        self, rule: str, output: Path, inputs: list[Path], *, implicit: list[Path] = (), **variables: object
    ) -> Path:
        needs = " ".join(map(str, inputs)) + (" | " + " ".join(map(str, implicit)) if implicit else "")
        self.lines.append(f"build {output}: {rule} {needs}")
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        return output

    def objects(self, sources: list[Path], extra: str = "") -> list[Path]:
        return [
            self.edge(
                "cxx",
                self.scratch / f"{source.relative_to(HERE)}.o",
                [source],
                flags=f"{self.flags[source.suffix]} {extra}",
            )
            for source in sorted(sources)
        ]

    def library(self, name: str, objects: list[Path], flags: str = "", needs: list[Path] = ()) -> Path:
        soname = "" if MACOS else f"-Wl,-soname,{Path(name).name}"
        output = self.edge("link", self.root / name, [*objects, *needs], flags=f"{soname} {self.ldflags} {flags}")
        self.outputs.append(output)
        return output

    def module(self, name: str, sources: list[Path], definitions: str) -> None:
        """A Python module; on Linux it finds the software device relative to itself."""
        objects, flags, device = self.objects(sources, definitions), self.python_libs, []
        if not MACOS:
            objects.append(self.personality)
            device.append(self.root / DEVICE)
            lib = os.path.relpath(device[0].parent, (self.root / name).parent)
            flags += f" -Wl,-rpath,'$$ORIGIN/{lib}'"
        self.library(f"{name}.so", objects, flags, device)

    def native(self) -> None:
        """`mpskernels._C`, and on Linux what stands in Metal.framework's place with its own Python module."""
        self.module("_C", list((HERE / "csrc").rglob("*.mm")), "-fvisibility=hidden -DTORCH_EXTENSION_NAME=_C")
        if MACOS:
            return
        rooms = SIMULATOR / "device", SIMULATOR / "framework"
        sources = {path for room in rooms for path in room.rglob("*") if path.suffix in self.flags}
        bindings = {path for path in sources if path.stem.startswith("bindings")}
        self.module("simulator/_simulator", [*bindings], "-fvisibility=hidden -DTORCH_EXTENSION_NAME=_simulator")
        sources = [path for path in sources - bindings if path.stem != self.personality.name.split(".")[0]]
        self.library(DEVICE, [*self.objects(sources), self.personality], "-lboost_context")

    def sources(self) -> None:
        """The kernels' sources, which travel always: where a metallib cannot be built, they are what is compiled."""
        folder = self.root / "metal"
        folder.mkdir(parents=True, exist_ok=True)
        texts = {path.name: flatten(path, set()) for path in (HERE / "metal").glob("*.metal")}
        for stray in set(folder.iterdir()) - {folder / name for name in texts}:
            stray.unlink(missing_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text + "\n")
        self.outputs += [folder / name for name in sorted(texts)]

    def metallib(self, safe: Path | None) -> str | None:
        """One object per .metal file, then a link, for each language that they need; says how it was done, or None
        where there is no compiler. In fast math, and for the tests again in safe math, as `safe`."""
        stds = {METAL_STD: "", METAL4_STD: "-metal4"}
        if MACOS:
            xcrun = program("xcrun", "xcode-select --install")
            compiler, linker = f"{xcrun} -sdk macosx metal", f"{xcrun} -sdk macosx metallib"
            # It is run, not looked for: Xcode 26 has a stand-in that only says what to download.
            if subprocess.run([*compiler.split(), "--version"], capture_output=True).returncode:
                print(
                    "mpskernels: no Metal compiler here: Xcode has it, its command-line tools do not. So macOS will "
                    "compile each kernel file at its first use in a process. To compile them now: install Xcode, then "
                    "sudo xcode-select -s /Applications/Xcode.app && xcodebuild -downloadComponent MetalToolchain, "
                    "and build again.",
                    file=sys.stderr,
                )
                return None
            metal4 = [*compiler.split(), f"-std={METAL4_STD}", "-x", "metal", "-E", "/dev/null"]
            if subprocess.run(metal4, capture_output=True).returncode:
                print("mpskernels: Xcode before 26 has no Metal 4: M5's matrix units will not be used", file=sys.stderr)
                del stds[METAL4_STD]
            arguments, implicit = "-std=$std -mmacosx-version-min=$macos -O2 -MMD -MF $depfile $math", []
            math = {"fast": "-ffast-math", "safe": "-fno-fast-math"}
        else:
            compiler = linker = f"PYTHONPATH={SIMULATOR} {sys.executable} -m compiler"
            arguments = "--std=$std --depfile $depfile $math"
            linker += " --link --std=$std $math"
            math = {mode: f"--math-mode={mode}" for mode in ("fast", "safe")}
            parts = [*(SIMULATOR / "compiler").rglob("*"), *(SIMULATOR / "msl").rglob("*"), SIMULATOR / "device/abi.h"]
            implicit = sorted(path for path in parts if path.is_file() and path.suffix != ".pyc")
        arguments = f"{arguments} -I{HERE / 'metal'} -c $in -o $out"
        self.rule("metal", arguments, command=compiler, deps="gcc")
        self.rule("metallib", "$in -o $out", command=linker)
        sources = {std: [] for std in (METAL_STD, METAL4_STD)}
        for source in sorted((HERE / "metal").glob("*.metal")):
            sources[METAL4_STD if NEEDS_METAL4 in source.read_text() else METAL_STD].append(source)
        for library, mode in [(self.root / "mpskernels.metallib", "fast")] + ([(safe, "safe")] if safe else []):
            for std, suffix in stds.items():
                options = {"std": std, "macos": MACOS_FOR[std], "math": math[mode]}
                objects = []
                for source in sources[std]:
                    output = self.scratch / "metal" / mode / f"{source.stem}.o"
                    depfile = output.with_suffix(".d")
                    objects.append(self.edge("metal", output, [source], implicit=implicit, depfile=depfile, **options))
                linked = self.edge("metallib", library.with_stem(library.stem + suffix), objects, **options)
                if mode == "fast":
                    self.outputs.append(linked)
        made = " and ".join(f"-std={std}" for std in stds)
        return f"xcrun metal {made}" if MACOS else f"the simulator's compiler, {made}"

    def run(self, safe: Path | None) -> None:
        self.native()
        self.sources()
        record = {"torch": torch_minor(), "metallib": self.metallib(safe)}
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "build.json").write_text(json.dumps(record, indent=2) + "\n")
        self.outputs.append(self.root / "build.json")
        self.make()

    def make(self) -> None:
        """Runs ninja on all that was collected."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        file = self.scratch / "build.ninja"
        file.write_text("\n".join(["ninja_required_version = 1.10", f"builddir = {self.scratch}", *self.lines, ""]))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        with (self.scratch / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ninja's own log does not survive two at once
            failed = subprocess.run([sys.executable, "-m", "ninja", "-k", "0", "-f", str(file), *jobs]).returncode
        if failed:
            sys.exit("mpskernels: the native build failed; the errors stand above")


class BuildNative(build_ext):
    """Setuptools' place for native code, filled by `Build`."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        root = HERE if in_place else Path(self.build_lib).resolve()
        scratch = HERE / "build" / "inplace" if in_place else Path(self.build_temp).resolve()
        self.build = Build(root, scratch)
        # The tests' second metallib belongs to a checkout, never to a wheel.
        self.build.run(safe=HERE / "build" / "mpskernels-safe.metallib" if in_place else None)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.build.outputs]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildForMac(build_py):
    """The package without the simulator, of which only the module that says where it runs is left."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.packages = [name for name in self.packages if not name.startswith("mpskernels.simulator.")]
        self.package_data.pop("mpskernels.simulator", None)

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [one for one in modules if package != "mpskernels.simulator" or one[1] == "__init__"]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("mpskernels._C", sources=[])],
        cmdclass={"build_ext": BuildNative, **({"build_py": BuildForMac} if MACOS else {})},
        install_requires=[f"torch=={torch_minor()}.*"],
        # As it is built, whatever Python says that it is for itself.
        options={"bdist_wheel": {"plat_name": "macosx_14_0_arm64"}} if MACOS else {},
    )
