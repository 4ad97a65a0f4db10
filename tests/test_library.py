"""Where kernels come from: a metallib, or a folder of sources that are compiled at first use and kept."""

import json
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import DTYPES, SAMPLES, all_equal, sample, typed

import mpskernels
from mpskernels import _C
from mpskernels.info import Cache

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(mpskernels.__file__).parent / "metal"


def run(op, dtype=torch.float32):
    args, kwargs = sample(op, dtype)
    return torch.utils._pytree.tree_map(torch.Tensor.cpu, typed(op)(*args, **kwargs))


@pytest.fixture
def cache(tmp_path):
    """The cache folder, which is not made yet."""
    own = Cache(*_C.cache_report()).folder
    folder = tmp_path / "cache" / "mpskernels"
    _C.set_cache_folder(str(folder))
    yield folder
    _C.set_cache_folder(own)


@pytest.fixture
def metallib(cache):
    """The path of the metallib, which is set again afterwards."""
    path = _C.metallib_path()
    yield path
    _C.set_metallib(path)


def run_from(sources, cache, op="rms_norm"):
    """What an op computes, and what it got from the cache, with nothing left in memory from earlier calls."""
    _C.set_cache_folder(str(cache))
    _C.set_metallib(str(sources))
    return run(op), Cache(*_C.cache_report())


def test_sources_give_what_the_metallib_gives(metallib):
    names = sorted(_C.function_names())
    expected = {(op, dtype): run(op, dtype) for op in SAMPLES for dtype in DTYPES.values()}
    _C.set_metallib(str(SOURCES))
    assert _C.pipelines() == []
    for (op, dtype), out in expected.items():
        assert all_equal(run(op, dtype), out), (op, dtype)
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


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "text", "module", "folder"])
def test_unusable_metallib_is_an_error_and_no_more(metallib, tmp_path, fault):
    expected = run("rms_norm")
    path = tmp_path / "kernels.metallib"
    content = b"".join(file.read_bytes() for file in Path(mpskernels.__file__).parent.glob("*.metallib"))
    contents = {"empty": b"", "truncated": content[: len(content) // 2], "text": b"no metallib\n" * 999}
    contents["module"] = Path(_C.__file__).read_bytes()
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


# What is kept -------------------------------------------------------------------------------------

PROCESS = """
import json, sys
import torch, mpskernels
from mpskernels import _C
_C.set_cache_folder(sys.argv[1])
_C.set_metallib(sys.argv[2])
x = torch.arange(256.0).reshape(4, 64).to("mps")
y = mpskernels.matmul(mpskernels.rms_norm(x, None, 1e-6), x.T).cpu()
print(json.dumps([_C.cache_report(), y.tolist()]))
"""


def start(cache):
    command = [sys.executable, "-c", PROCESS, str(cache), str(SOURCES)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    report, result = json.loads(out)
    return Cache(*report), result


def test_processes_fill_the_cache_at_once_and_a_later_one_compiles_no_pipeline(cache):
    results = [finish(process) for process in [start(cache) for _ in range(4)]]
    for report, result in results:
        assert report.loaded + report.compiled == 2
        assert (report.usable, report.problem) == (True, "")
        assert result == results[0][1]
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert all(re.fullmatch(r"\w+-[0-9a-f]{40}-[0-9a-f]{40}\.archive", path.name) for path in files)
    report, result = finish(start(cache))
    assert report == Cache(folder=str(cache), usable=True, loaded=2, compiled=0, problem="")
    assert result == results[0][1]
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files


@pytest.mark.parametrize("fault", ["empty", "truncated", "changed", "text", "other kernel", "other kernel's name"])
def test_damaged_archive_is_compiled_again(metallib, cache, fault):
    run_from(SOURCES, cache, "matmul")
    [other] = cache.iterdir()
    expected, _ = run_from(SOURCES, cache)
    [archive] = set(cache.iterdir()) - {other}
    content = archive.read_bytes()
    contents = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "changed": content[:-1] + bytes([content[-1] ^ 1]),
        "text": b"no archive\n" * 99,
    }
    archive.write_bytes(contents.get(fault, other.read_bytes()))
    if fault == "other kernel's name":  # a whole archive, of which only Metal can tell that the kernel is not in it
        archive = archive.rename(f"{str(archive)[: -len('.archive') - 40]}{str(other)[-len('.archive') - 40 :]}")
    out, report = run_from(SOURCES, cache)
    assert torch.equal(out, expected)
    assert (report.usable, report.loaded, report.compiled) == (True, 0, 1)
    assert report.problem.startswith(f"{archive}: ")
    assert (report.problem == f"{archive}: not what its name says") == (fault != "other kernel's name")
    assert report.problem in str(mpskernels.info())
    out, report = run_from(SOURCES, cache)
    assert torch.equal(out, expected)
    assert (report.usable, report.loaded, report.compiled, report.problem) == (True, 1, 0, "")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("fault", ["none", "file", "below a file"])
def test_cache_folder_that_cannot_be_made_costs_a_compilation(metallib, tmp_path, fault):
    expected = run("rms_norm")
    (tmp_path / "file").write_text("in the way")
    folder = {"none": "", "file": tmp_path / "file", "below a file": tmp_path / "file" / "mpskernels"}[fault]
    for _ in range(2):
        out, report = run_from(SOURCES, folder)
        assert torch.equal(out, expected)
        assert (report.usable, report.loaded, report.compiled) == (False, 0, 1)
        assert report.problem.startswith(f"{folder}: ") if fault != "none" else report.problem == ""
        assert f"cache      {folder or 'none'}: not usable" in str(mpskernels.info())
    assert (tmp_path / "file").read_text() == "in the way"


def test_archive_that_cannot_be_written_leaves_nothing(metallib, cache):
    expected = run("rms_norm")
    _C.set_metallib(str(SOURCES))
    _C.function_names()  # compiled, which may need files of its own
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as on a full disk
    try:
        out = run("rms_norm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    report = Cache(*_C.cache_report())
    assert torch.equal(out, expected)
    assert (report.loaded, report.compiled) == (0, 1)
    assert report.problem.startswith(f"{cache}/")
    assert list(cache.iterdir()) == []


def test_archive_that_cannot_be_replaced_costs_a_compilation(metallib, cache):
    expected, _ = run_from(SOURCES, cache)
    [archive] = cache.iterdir()
    archive.unlink()
    archive.mkdir()
    for _ in range(2):
        out, report = run_from(SOURCES, cache)
        assert torch.equal(out, expected)
        assert (report.loaded, report.compiled) == (0, 1)
        assert report.problem.startswith(f"{archive}: ")
    assert list(cache.iterdir()) == [archive]


def test_only_the_same_source_finds_an_archive(metallib, cache, tmp_path):
    folder = shutil.copytree(SOURCES, tmp_path / "metal")
    expected, report = run_from(SOURCES, cache)
    assert (report.loaded, report.compiled) == (0, 1)
    out, report = run_from(folder, cache)
    assert torch.equal(out, expected)
    assert (report.loaded, report.compiled) == (1, 0)
    with (folder / "norm.metal").open("a") as file:
        file.write("// changed\n")
    out, report = run_from(folder, cache)
    assert torch.equal(out, expected)
    assert (report.loaded, report.compiled, report.problem) == (0, 1, "")
    _, report = run_from(SOURCES, cache)
    assert (report.loaded, report.compiled, report.problem) == (1, 0, "")


def test_metallib_needs_no_cache(cache):
    if Path(_C.metallib_path()).is_dir():
        pytest.skip("this installation was built without a Metal compiler")
    run("rms_norm")
    assert not cache.exists()
    assert mpskernels.info().cache is None
