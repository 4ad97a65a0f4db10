"""The checks that `make macos-check` runs on the build for macOS can fail: here they get broken input. And what the
package's Python files do on a Mac."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from macos import check

ROOT = Path(__file__).resolve().parents[1]
CAPTURE = {"capture_output": True, "text": True}
LIBRARIES = {"@rpath/libc10.dylib": {"_a", "_b"}, "/usr/lib/libSystem.B.dylib": {"_free"}}


def test_symbols_are_looked_up_in_the_library_they_are_bound_to() -> None:
    imports = {"@rpath/libc10.dylib": ["_a"], "/usr/lib/libSystem.B.dylib": ["_free"], "": ["_PyLong_Type"]}
    assert check.unresolved(imports, LIBRARIES, {"_PyLong_Type"}) == []
    imports = {"@rpath/libc10.dylib": ["_free"], "/usr/lib/libgone.dylib": ["_a"], "": ["_b"]}
    assert check.unresolved(imports, LIBRARIES, {"_PyLong_Type"}) == [
        "_free: not in @rpath/libc10.dylib",
        "_a: not in /usr/lib/libgone.dylib",
        "_b: not in Python",
    ]


def test_a_misspelt_selector_is_in_no_source() -> None:
    sources = {"one": {"newLibraryWithURL:error:"}, "other": {"name"}}
    assert check.unconfirmed("selector", ["name", "newLibraryWithURL:error:"], sources) == []
    assert check.unconfirmed("selector", ["newLibraryWithUrl:error:"], sources) == [
        "selector newLibraryWithUrl:error:: in no source"
    ]


def test_a_wrong_or_unknown_value_is_named() -> None:
    assert check.wrong_values({"MTLDataTypeBool": 53}, {"MTLDataTypeBool": 53}) == []
    assert check.wrong_values({"MTLDataTypeBool": 54, "MTLGone": 1}, {"MTLDataTypeBool": 53}) == [
        "MTLDataTypeBool = 54: Apple has 53",
        "MTLGone = 1: Apple has no such name",
    ]


def test_a_method_with_other_types_is_named() -> None:
    apples = {"P": {"-length": "Q16@0:8"}}
    assert check.wrong_encodings({"P": {"-length": "Q16@0:8"}, "Unknown": {"-x": "v16@0:8"}}, apples) == []
    assert check.wrong_encodings({"P": {"-length": "I16@0:8"}}, apples) == ["-[P length] is I16@0:8: Apple has Q16@0:8"]


def test_files_that_differ_by_case_alone() -> None:
    assert check.clashes(["metal/norm.metal", "csrc/norm.mm"]) == []
    assert len(check.clashes(["csrc/Norm.mm", "csrc/norm.mm"])) == 2


def test_functions_that_compile_to_other_code() -> None:
    assert check.changed({"a": b"1", "b": b"2"}, {"a": b"3", "c": b"2"}) == ["a"]


PACKAGE = "mpskernels/__init__.py", "mpskernels/simulator/__init__.py"


def test_a_wheel_with_parts_of_the_simulator() -> None:
    assert check.strangers([*PACKAGE, "mpskernels/_C.so", "mpskernels/metal/norm.metal"]) == []
    parts = ["mpskernels/simulator/msl/metal_math", "mpskernels/simulator/compiler/__init__.py"]
    assert check.strangers([*PACKAGE, *parts]) == parts


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The Python files that a wheel for macOS has, where nothing native is."""
    folder = tmp_path_factory.mktemp("mac")
    code = (
        "import runpy, setuptools; on_mac = runpy.run_path('setup.py')['BuildForMac'];"
        f"setuptools.setup(script_args=['-q', 'build_py', '-d', {str(folder)!r}], cmdclass={{'build_py': on_mac}})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
    return folder


def on_mac(folder: Path, code: str) -> str:
    """The last line that Python says where it takes itself to be on a Mac."""
    command = [sys.executable, "-P", "-c", f"import sys, torch; sys.platform = 'darwin'; {code}"]
    result = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, **CAPTURE)
    return (result.stdout + result.stderr).strip().splitlines()[-1]


def test_the_wheel_has_every_file_but_the_simulators(installed) -> None:
    files = [str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()]
    assert check.strangers(files) == []
    sources = [str(path.relative_to(ROOT)) for path in (ROOT / "mpskernels").rglob("*.py")]
    assert sorted(files) == sorted({*sources} - {*check.strangers(sources)})


def test_import_on_a_mac_asks_for_the_native_module_and_not_for_the_simulator(installed) -> None:
    series = ".".join(torch.__version__.split(".")[:2])
    (installed / "mpskernels/build.json").write_text(json.dumps({"torch": series, "metallib": None}))
    message = on_mac(installed, "import mpskernels")
    assert message.startswith("ImportError: cannot import name '_C' from partially initialized module 'mpskernels'")


def test_another_torch_on_a_mac_is_refused_before_anything_is_loaded(installed) -> None:
    (installed / "mpskernels/build.json").write_text(json.dumps({"torch": "2.1", "metallib": None}))
    message = on_mac(installed, "import mpskernels")
    assert message.startswith("ImportError: mpskernels was built against torch 2.1 and found torch 2.")


def test_the_simulator_on_a_mac_says_that_it_is_for_linux(installed) -> None:
    assert on_mac(installed, "import runpy; runpy.run_path('mpskernels/simulator/__init__.py')") == (
        "ImportError: mpskernels.simulator is for Linux: on a Mac, mpskernels runs on the GPU itself"
    )
