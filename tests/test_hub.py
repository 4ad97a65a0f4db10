"""The build for the Hugging Face Hub: what kernel-builder is given, and what `kernels` makes of the package."""

import ast
import fcntl
import json
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from cases import all_equal, direct, ops, sample
from kernels import get_local_kernel
from kernels._rust import Backend, Build

import mpskernels

ROOT = Path(__file__).resolve().parents[1]
FACE = ROOT / "torch-ext" / "mpskernels"
METALLIB = Path(mpskernels.__file__).parent / "mpskernels.metallib"
ID = "_mpskernels_metal_test"

# What kernel-builder writes.
REGISTRATION = """\
#pragma once
#include <Python.h>
#define REGISTER_EXTENSION(name) REGISTER_EXPANDED(name)
#define REGISTER_EXPANDED(name)                                                                               \\
  PyMODINIT_FUNC PyInit_##name() {                                                                            \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, #name, nullptr, 0, nullptr, nullptr, nullptr, nullptr, \\
                                 nullptr};                                                                    \\
    return PyModule_Create(&module);                                                                          \\
  }
"""
EMBEDDED = """\
#pragma once
#include <Metal/Metal.h>
#include <dispatch/dispatch.h>
namespace %s {
static const unsigned char bytes[] = {%s};
inline id<MTLLibrary> createLibrary(id<MTLDevice> device, NSError** error = nullptr) {
  dispatch_data_t data = dispatch_data_create(bytes, sizeof bytes, nullptr, DISPATCH_DATA_DESTRUCTOR_DEFAULT);
  return [device newLibraryWithData:data error:error];
}
}
"""
OPS = f"""\
import torch
from . import {ID}

ops = torch.ops.{ID}


def add_op_namespace_prefix(op):
    return f"{ID}::{{op}}"
"""
METADATA = {"id": ID, "name": "mpskernels", "version": 0, "license": "Apache-2.0", "python-depends": []}
METADATA |= {"backend": {"type": "metal"}}


def write(path: Path, text: str) -> None:
    """Leaves a file alone that says so already, and with it what was built from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def build(variant: Path, scratch: Path) -> None:
    """What kernel-builder does, by our compiler, so that it runs here."""
    generated = scratch / "generated"
    write(generated / "registration.h", REGISTRATION)
    write(generated / "metallib.h", EMBEDDED % (f"{ID}_metal", ",".join(map(str, METALLIB.read_bytes()))))
    shutil.copytree(FACE, variant, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    write(variant / "_ops.py", OPS)
    write(variant / "metadata.json", json.dumps(METADATA))
    native = runpy.run_path(str(ROOT / "setup.py"))["Build"](ROOT, scratch)
    sources = [ROOT / name for name in [*HUB["torch"]["src"], *HUB["kernel"]["mpskernels"]["src"]]]
    definitions = (
        f"-DMETAL_KERNEL -DTORCH_EXTENSION_NAME={ID} -DPy_LIMITED_API=0x03000000 -DEMBEDDED_METALLIB_NAMESPACE"
    )
    native.module(
        str(variant / f"{ID}.abi3"),
        [path for path in sources if path.suffix == ".mm"],
        f"{definitions}={ID}_metal -DEMBEDDED_METALLIB_HEADER='\"metallib.h\"' -I{generated}",
    )
    native.make()


HUB = tomllib.loads((ROOT / "build.toml").read_text())


@pytest.fixture(scope="module")
def hub():
    """The package as `kernels` loads it."""
    if not METALLIB.exists():
        pytest.skip("built without a Metal compiler")
    folder = ROOT / "build" / "hub-test"
    variant = folder / "torch-ext"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(variant, folder / "scratch")
    return get_local_kernel(variant)


def test_build_toml_is_one_and_names_every_source():
    assert Build.open(ROOT).general.backends == [Backend.Metal]
    sources = [path for place in ("csrc", "metal") for path in (ROOT / place).rglob("*.*")]
    names = {str(path.relative_to(ROOT)) for path in sources if path.suffix in {".mm", ".h", ".metal"}}
    assert set(HUB["kernel"]["mpskernels"]["src"]) == names
    assert all((ROOT / name).exists() for name in HUB["torch"]["src"])


@pytest.mark.parametrize("path", sorted(FACE.rglob("*.py")) + sorted((ROOT / "mpskernels/ops").glob("*.py")))
def test_shared_python_names_neither_its_package_nor_its_namespace(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module.split(".")[0]]
        else:
            names = []
        assert set(names) <= {*sys.stdlib_module_names, "torch"}, ast.unparse(node)
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops.mpsk")
        assert not (isinstance(node, ast.Constant) and str(node.value).startswith("mpsk::"))


def test_hub_has_the_same_ops_in_a_namespace_of_its_own(hub):
    names = torch._C._dispatch_get_all_op_names()
    ours = {name.partition("::")[2] for name in names if name.startswith("mpsk::")}
    theirs = {name.partition("::")[2] for name in names if name.startswith(f"{ID}::")}
    assert {name for name in theirs if not name.startswith("check_")} == ours
    assert set(mpskernels.ops.__all__) <= set(hub.__all__)
    assert hub.__name__ == ID


@ops
def test_hub_gives_what_the_package_gives(hub, op):
    args, kwargs = sample(op)
    theirs = getattr(getattr(torch.ops, ID), op)
    assert all_equal(theirs(*args, **kwargs), direct(op)(*args, **kwargs))
    torch.library.opcheck(theirs.default, args, kwargs)


def test_hub_compiles_and_refuses_as_the_package_does(hub):
    args, kwargs = sample("matmul")
    compiled = torch.compile(hub.matmul, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args, **kwargs).cpu(), mpskernels.matmul(*args).cpu())
    for function in (hub.matmul, mpskernels.matmul):
        for arguments in (args, [x.to("meta") for x in args]):
            with pytest.raises(
                ValueError, match=r"mpsk::matmul: expected b\.size\(-2\) == 5 to match a\.size\(-1\), got 7"
            ):
                function(arguments[0].transpose(-1, -2), arguments[1])


def test_layer_of_the_hub_norms_as_the_op_does(hub):
    x, weight, eps = sample("rms_norm")[0]
    norm = hub.layers.RMSNorm()
    norm.weight, norm.variance_epsilon = weight, eps
    assert torch.equal(norm(x).cpu(), mpskernels.rms_norm(x, weight, eps).cpu())
