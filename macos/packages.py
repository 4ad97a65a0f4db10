"""The wheels of wheels.txt: torch's headers, and the facts that their binaries hold; all is kept in build/macos."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from macos import macho

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "macos"
WHEELS = [line for line in (ROOT / "macos" / "wheels.txt").read_text().split("\n") if line and line[0] != "#"]
# The torch wheel of each series: {"2.13": "torch==2.13.0", ...}
TORCH = {re.match(r"torch==(\d+\.\d+)", name)[1]: name for name in WHEELS if name.startswith("torch==")}
# Any macOS version up to 14; a wheel for a newer one could not be used by what is built here.
PLATFORMS = ["macosx_14_0_arm64", "macosx_11_0_arm64", "macosx_10_9_universal2"]


def wheel(name: str) -> Path:
    """The wheel file of a line of wheels.txt, downloaded once."""
    folder = BUILD / "downloads" / name
    if not folder.is_dir():
        print(f"==> Download of {name} for macOS", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            platforms = [flag for platform in PLATFORMS for flag in ("--platform", platform)]
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", *platforms]
            subprocess.run([*pip, "--python-version", version, "-d", scratch, name], check=True)
            shutil.copytree(scratch, f"{scratch}.whole")
            Path(f"{scratch}.whole").rename(folder)
    [file] = folder.glob("*.whl")
    return file


def torch_headers(series: str) -> Path:
    """torch's include folder."""
    folder = BUILD / "headers" / TORCH[series]
    if not folder.is_dir():
        scratch = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        with zipfile.ZipFile(wheel(TORCH[series])) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith("torch/include/")])
        scratch.rename(folder)
    return folder / "torch" / "include"


def binaries(name: str) -> dict[str, dict]:
    """What `macho.read` finds in each binary of a wheel, by its path there."""
    file = BUILD / "facts" / f"{name}.json"
    if not file.is_file():
        facts = {}
        with zipfile.ZipFile(wheel(name)) as archive, tempfile.TemporaryDirectory() as scratch:
            for member in archive.namelist():
                if member.endswith((".so", ".dylib")):
                    facts[member] = macho.read(Path(archive.extract(member, scratch)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts))
    return json.loads(file.read_text())


def text(name: str, ending: str) -> str:
    """The text files of a wheel whose path ends so, one after the other."""
    with zipfile.ZipFile(wheel(name)) as archive:
        return "".join(archive.read(member).decode() for member in archive.namelist() if member.endswith(ending))
