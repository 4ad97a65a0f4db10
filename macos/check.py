"""What can be proved about the Mac build without a Mac: `python -m macos.check`.

Every check is a function of plain sets and dicts, so that tests can show it fail, and returns one line for each fault.
"""

import ctypes
import itertools
import json
import re
import runpy
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import PIPE

from macos import build, macho, packages
from macos.packages import BUILD, ROOT

HEADERS = ROOT / "macos" / "include"
SYSTEM_HEADERS = "Metal/Metal.h", "MetalPerformanceShadersGraph/MetalPerformanceShadersGraph.h"
GNU_LINKERS = re.compile(r"-Wl,-z\S*|-Wl,-soname\S*|-fuse-ld\S*|\S*ORIGIN\S*|-Wl,--\S*")
ONLY_ON_A_MAC = """\
Provable only on a Mac: that dyld loads the module, that Metal accepts the kernels' sources, that methods do what their
names say, what the kernels compute and how fast, and Xcode's own compiler and `xcrun metal`."""


def unresolved(imports: dict[str, list[str]], libraries: dict[str, set[str]], python: Iterable[str]) -> list[str]:
    """The undefined symbols of a module that the library they are bound to does not have."""
    python = set(python)
    return [
        f"{name}: not in {library or 'Python'}"
        for library, names in imports.items()
        for name in names
        if name not in (libraries.get(library, set()) if library else python)
    ]


def unconfirmed(kind: str, declared: Iterable[str], sources: dict[str, set[str]]) -> list[str]:
    """Names that no source has."""
    return [f"{kind} {name}: in no source" for name in declared if not any(name in known for known in sources.values())]


def wrong_values(declared: dict[str, int], known: dict[str, int]) -> list[str]:
    return [
        f"{name} = {value}: Apple has {known.get(name, 'no such name')}"
        for name, value in declared.items()
        if known.get(name) != value
    ]


def wrong_encodings(ours: dict[str, dict[str, str]], apples: dict[str, dict[str, str]]) -> list[str]:
    """Methods of a protocol that Apple's compiler recorded with other types, or not at all."""
    return [
        f"{method[0]}[{protocol} {method[1:]}] is {types}: Apple has {apples[protocol].get(method, 'no such method')}"
        for protocol, methods in ours.items()
        if protocol in apples
        for method, types in methods.items()
        if apples[protocol].get(method) != types
    ]


def clashes(paths: Iterable[str]) -> list[str]:
    """Files that a file system without regard to case takes for one."""
    count = Counter(path.casefold() for path in paths)
    return [f"{path}: differs from another file by case alone" for path in paths if count[path.casefold()] > 1]


def strangers(names: Iterable[str]) -> list[str]:
    """What a wheel for macOS has no use for: the simulator, but for the module that says so."""
    kept = "mpskernels/simulator/__init__.py"
    return [name for name in names if name.startswith("mpskernels/simulator/") and name != kept]


def wheel_faults(file: Path, series: str) -> list[str]:
    """What would keep pip from installing a wheel on macOS 14, or it from working there."""
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as scratch:
        files = {name: archive.read(name) for name in archive.namelist()}
        module = macho.read(Path(archive.extract("mpskernels/_C.so", scratch)))
    [tags] = [text.decode() for name, text in files.items() if name.endswith(".dist-info/WHEEL")]
    [metadata] = [text.decode() for name, text in files.items() if name.endswith(".dist-info/METADATA")]
    kernels = {f"mpskernels/metal/{path.name}" for path in (ROOT / "metal").glob("*.metal")}
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wanted = {
        "another tag than its name": f"Tag: {python}-{python}-macosx_14_0_arm64" in tags,
        "not for macOS 14": module["platform"] == "14.0",
        "not signed, which arm64 asks of all code": module["signed"],
        "no PyInit__C": "_PyInit__C" in module["exports"],
        "not bound to its torch": f"Requires-Dist: torch=={series}.*" in metadata,
        "not guarded against another torch": json.loads(files["mpskernels/build.json"])["torch"] == series,
        "other kernels than metal/": kernels == {name for name in files if name.endswith(".metal")},
        "another platform's module": [name for name in files if ".so" in name] == ["mpskernels/_C.so"],
        "parts of the simulator": not strangers(files),
        "a kernel that includes our headers": not any(b'#include "' in files[name] for name in kernels),
    }
    return [fault for fault, passed in wanted.items() if not passed]


def declarations() -> tuple[dict[str, set[str]], dict[str, int], set[str]]:
    """What macos/include declares: selectors by class or protocol, values of enumerators, and protocols."""
    probe = BUILD / "declarations.mm"
    probe.write_text("".join(f"#import <{name}>\n" for name in SYSTEM_HEADERS) + "@protocol probe;\n")
    dump = build.zig(
        *("clang", "--target=arm64-apple-macos14.0", "-x", "objective-c++", "-std=c++20", "-fblocks", "-nostdinc"),
        *("-isystem", HEADERS, "-isystem", zig_headers() / "include"),
        *("-isystem", zig_headers() / "libc/include/any-darwin-any"),
        *("-fsyntax-only", "-Xclang", "-ast-dump=json", probe),
        check=True,
        capture_output=True,
    )
    selectors: dict[str, set[str]] = {}
    values: dict[str, int] = {}
    protocols = set()
    for node, file in walk(json.loads(dump.stdout), ""):
        if not file.startswith(str(HEADERS)):
            continue
        if node["kind"] in ("ObjCProtocolDecl", "ObjCInterfaceDecl"):
            methods = selectors.setdefault(node["name"], set())
            methods |= {one["name"] for one in node.get("inner", []) if one["kind"] == "ObjCMethodDecl"}
            if node["kind"] == "ObjCProtocolDecl":
                protocols.add(node["name"])
        elif node["kind"] == "EnumConstantDecl":
            values[node["name"]] = int(node["inner"][0]["value"])
    return selectors, values, protocols


def walk(node: dict, file: str) -> Iterator[tuple[dict, str]]:
    """The nodes of clang's JSON with the file that each stands in, which clang names only where it changes."""
    state = [file]

    def locate(place: object) -> None:
        if isinstance(place, dict):
            state[0] = place.get("file", state[0])
            for key, value in place.items():
                if key != "includedFrom":
                    locate(value)

    def visit(node: dict) -> Iterator[tuple[dict, str]]:
        locate(node.get("loc"))
        at = state[0]
        locate(node.get("range"))
        if "kind" in node:
            yield node, at
        for child in node.get("inner", []):
            yield from visit(child)

    return visit(node)


def zig_headers() -> Path:
    import ziglang

    return Path(ziglang.__file__).parent / "lib"


def our_encodings(protocols: Iterable[str]) -> dict[str, dict[str, str]]:
    """The methods of our protocols as the compiler records them for the runtime."""
    probe = BUILD / "protocols.mm"
    functions = [f"Protocol* probe_{name}() {{ return @protocol({name}); }}\n" for name in sorted(protocols)]
    probe.write_text("#import <Metal/Metal.h>\n" + "".join(functions))
    build.link([build.compile_object(probe, probe.with_suffix(".o"), [])], probe.with_suffix(".so"), {})
    return macho.read(probe.with_suffix(".so"))["protocols"]


def functions(series: str) -> dict[str, bytes]:
    return {name: code for file in build.objects(series) for name, code in macho.functions(file).items()}


def changed(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The functions that both have, with different code."""
    return sorted(name for name in one.keys() & other.keys() if one[name] != other[name])


def mac_flags() -> tuple[str, str]:
    """What setup.py would give to compiler and linker on a Mac."""
    names = runpy.run_path(str(ROOT / "setup.py"))
    names["Build"].__init__.__globals__.update(MACOS=True, program=lambda name, remedy: name)
    on_mac = names["Build"](BUILD, BUILD)
    on_mac.native()
    return on_mac.flags[".mm"], "\n".join(on_mac.lines)


class Evidence:
    """Independent sources of how Apple declares things."""

    def __init__(self) -> None:
        wheels = {name: packages.binaries(name) for name in packages.WHEELS}
        self.metadata = "".join(packages.text(name, "_metadata.py") for name in wheels if name.startswith("pyobjc"))
        self.values = {name: int(value) for name, value in re.findall(r"\$(\w+)@(-?\d+)(?=\$)", self.metadata)}
        pairs = re.findall(r'r\(\s*b"(\w+)",\s*b"([\w:]+)"', self.metadata)
        self.protocols: dict[str, dict[str, str]] = {}
        self.selectors = {source: set() for source in ("pyobjc", "torch", "mlx", "onnxruntime")}
        self.names = {source: set() for source in self.selectors}
        self.selectors["pyobjc"].update(selector for _, selector in pairs)
        self.names["pyobjc"].update(re.findall(r"\b(?:MTL|MPS|NS)\w+", self.metadata))
        for wheel, binaries in wheels.items():
            source = re.match(r"[a-z]+", wheel)[0]
            for facts in binaries.values():
                self.selectors[source].update(facts["selectors"])
                self.names[source].update(facts["classes"])
                self.names[source].update(facts["protocols"])
                for symbol in [name for names in facts["imports"].values() for name in names]:
                    self.names[source].add(symbol.removeprefix("_OBJC_CLASS_$_"))
                if source == "pyobjc":
                    self.protocols.update(facts["protocols"])


def by_source(declared: Iterable[str], sources: dict[str, set[str]]) -> str:
    return ", ".join(f"{sum(one in known for one in declared)} by {source}" for source, known in sources.items())


class Report:
    def __init__(self) -> None:
        self.failed = False

    def __call__(self, passed: str, faults: list[str]) -> None:
        self.failed = self.failed or bool(faults)
        print(f"{'FAIL' if faults else 'ok  '}  {passed}", flush=True)
        for fault in faults:
            print(f"        {fault}")


def main() -> int:
    report = Report()
    seen = Evidence()

    print("Symbols: each undefined one, in the library it is bound to")
    text = (zig_headers() / "libc/darwin/libSystem.tbd").read_text()
    system = build.system_libraries() | {"/usr/lib/libSystem.B.dylib": set(re.findall(r"[\w$]+", text))}
    modules = {}
    for series, wheel in packages.TORCH.items():
        modules[series] = facts = macho.read(build.module(series))
        imports = facts["imports"]
        python = {name for name in imports[""] if hasattr(ctypes.pythonapi, name.removeprefix("_"))}
        counts = ", ".join(f"{len(names)} {Path(library or 'Python').stem}" for library, names in imports.items())
        report(
            f"{wheel}: {len(build.SOURCES)} files compile, {sum(map(len, imports.values()))} symbols: {counts}",
            unresolved(imports, system | build.torch_libraries(series), python),
        )
        file = build.wheel(series)
        report(f"{file.name}: {file.stat().st_size:,} bytes", wheel_faults(file, series))

    print("Declarations in macos/include, compared with what Apple's compiler recorded in published binaries")
    declared, values, protocols = declarations()
    selectors = sorted(set().union(*declared.values()))
    report(
        f"{len(selectors)} selectors: {by_source(selectors, seen.selectors)}",
        unconfirmed("selector", selectors, seen.selectors),
    )
    report(
        f"{len(declared)} classes and protocols: {by_source(declared, seen.names)}",
        unconfirmed("name", declared, seen.names),
    )
    report(f"{len(values)} values of enumerators", wrong_values(values, seen.values))
    ours = our_encodings(name for name in protocols if declared[name])
    both = ours.keys() & seen.protocols.keys()
    report(
        f"types of {sum(len(ours[name]) for name in both)} methods of {', '.join(sorted(both))}; by name alone: "
        + ", ".join(sorted(ours.keys() - both)),
        wrong_encodings(ours, seen.protocols),
    )
    sent = sorted(set().union(*(facts["selectors"] for facts in modules.values())))
    report(f"{len(sent)} selectors that the modules send", unconfirmed("selector", sent, seen.selectors))

    print("Portability")
    files = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True
    )
    files = files.stdout.splitlines()
    report(f"{len(files)} file names, without regard to case", clashes(files))
    compiler, ninja = mac_flags()
    empty = BUILD / "empty.mm"
    empty.write_text("")
    tried = build.zig("clang", "--target=arm64-apple-darwin", *compiler.split(), "-fsyntax-only", empty, stderr=PIPE)
    report("setup.py's flags for a Mac: clang takes them for that target", tried.stderr.splitlines())
    report("setup.py's flags for a Mac: none is for GNU linkers", GNU_LINKERS.findall(ninja))

    print("One wheel or several?")
    for series, other in itertools.permutations(modules, 2):
        there = system | build.torch_libraries(other)
        imports = {library: names for library, names in modules[series]["imports"].items() if library}
        missing = unresolved(imports, there, [])
        print(f"      built for {series}, loaded by {other}: {len(missing)} symbols missing", *missing[:1])
    code = {series: functions(series) for series in modules}
    for series, other in itertools.combinations(modules, 2):
        names, total = changed(code[series], code[other]), len(code[series].keys() & code[other].keys())
        ours = [re.sub(r"__ZN4mpsk(?:12_GLOBAL__N_1)?\d+(\w+?)E.*", r"\1", name) for name in names if "ZN4mpsk" in name]
        print(f"      {series} and {other}: {len(names)} of {total} functions compile to other code; ours:", *ours)
    flags = [*build.OBJCXX, *build.torch_flags(series), "-DPy_LIMITED_API=0x030B0000", "-c", ROOT / "csrc/bindings.mm"]
    limited = build.zig("c++", *flags, "-o", BUILD / "limited.o", capture_output=True)
    report(
        "each Python needs its own: pybind11 does not compile against the limited API",
        [] if limited.returncode else ["it does; one wheel could serve them all"],
    )

    print(ONLY_ON_A_MAC)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
