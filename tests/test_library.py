"""Where kernels come from: a metallib, or a folder of sources that are compiled at first use."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import DTYPES, SAMPLES, sample, typed

import mpskernels
from mpskernels import _C

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(mpskernels.__file__).parent / "metal"


def run(op, dtype=torch.float32):
    args, kwargs = sample(op, dtype)
    return typed(op)(*args, **kwargs).cpu()


@pytest.fixture
def metallib():
    """The path of the metallib, which is set again afterwards."""
    path = _C.metallib_path()
    yield path
    _C.set_metallib(path)


def test_sources_give_what_the_metallib_gives(metallib):
    names = sorted(_C.function_names())
    expected = {(op, dtype): run(op, dtype) for op in SAMPLES for dtype in DTYPES.values()}
    _C.set_metallib(str(SOURCES))
    assert _C.pipelines() == []
    for (op, dtype), out in expected.items():
        assert torch.equal(run(op, dtype), out), (op, dtype)
    assert sorted(_C.function_names()) == names
    info = mpskernels.info()
    assert (info.metallib, info.functions) == (str(SOURCES), len(names))
    assert info.metallib_built_by == "Metal itself, from source at first use"


def test_threads_may_ask_while_another_compiles(metallib, tmp_path):
    expected = run("rms_norm")
    shutil.copy(SOURCES / "norm.metal", tmp_path)
    _C.set_metallib(str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(run, "rms_norm") for _ in range(3)]
        while not all(result.done() for result in results):
            assert len(_C.pipelines()) <= 1
    assert all(torch.equal(result.result(), expected) for result in results)


def test_source_that_does_not_compile_takes_only_its_own_kernels(metallib, tmp_path):
    expected = run("matmul")
    folder = shutil.copytree(SOURCES, tmp_path / "metal")
    with (folder / "norm.metal").open("a") as file:
        file.write("this is no Metal\n")
    line = len((ROOT / "metal/norm.metal").read_text().splitlines()) + 1
    _C.set_metallib(str(folder))
    for _ in range(2):
        for call in (lambda: run("rms_norm"), _C.function_names):
            with pytest.raises(RuntimeError, match=f"mpsk: cannot compile {folder}/norm.metal: ") as info:
                call()
            assert f"metal/norm.metal:{line}:" in str(info.value)  # the file to edit, not the one that was generated
    assert torch.equal(run("matmul"), expected)


def test_kernel_that_no_source_has_is_named(metallib, tmp_path):
    shutil.copy(SOURCES / "norm.metal", tmp_path)
    _C.set_metallib(str(tmp_path))
    with pytest.raises(RuntimeError, match=f"mpsk: no kernel matmul_tile_f32.* in {tmp_path}: "):
        run("matmul")


def test_source_that_is_no_text_is_an_error(metallib, tmp_path):
    (tmp_path / "norm.metal").write_bytes(b"\xff\xfe\xff")
    _C.set_metallib(str(tmp_path))
    with pytest.raises(RuntimeError, match=f"mpsk: cannot read {tmp_path}/norm.metal: "):
        run("rms_norm")


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "text", "folder"])
def test_unusable_metallib_is_an_error_and_no_more(metallib, tmp_path, fault):
    expected = run("rms_norm")
    path = tmp_path / "kernels.metallib"
    content = b"".join(file.read_bytes() for file in Path(mpskernels.__file__).parent.glob("*.metallib"))
    contents = {"empty": b"", "truncated": content[: len(content) // 2], "text": b"no metallib\n" * 999}
    if fault == "folder":
        path.mkdir()
    elif fault in contents:
        path.write_bytes(contents[fault])
    _C.set_metallib(str(path))
    for call in (lambda: run("rms_norm"), _C.function_names):
        with pytest.raises(RuntimeError, match="mpsk: cannot open the metallib ") as info:
            call()
        assert str(path) in str(info.value)
        assert len(str(info.value)) > len(f"mpsk: cannot open the metallib {path}: ")
    assert _C.pipelines() == []
    _C.set_metallib(metallib)
    assert torch.equal(run("rms_norm"), expected)
