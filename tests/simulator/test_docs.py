"""docs/check-and-profile.md, run as it stands: python tests/simulator/test_docs.py writes its outputs anew."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/check-and-profile.md"
# A file that the page shows, a change to one, or commands with what they print.
BLOCK = re.compile(r"(?:<!-- (file|change): (\S+) -->\n```\w+|```(console))\n(.*?)```\n", re.DOTALL)


def changed(text: str, diff: str) -> str:
    """The text with the lines that `diff` removes and adds; its other lines say where."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"the change fits {text.count(old)} places: {diff}"
    return text.replace(old, new)


def session(block: str, folder: Path) -> str:
    """The commands of a console block, run one after the other, each with what it prints and an exit status that is
    not 0."""
    printed = ""
    for line in block.splitlines():
        if not line.startswith("$ "):
            continue
        command = [sys.executable if word == "python" else word for word in shlex.split(line[2:])]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MPSK_SIMULATE": "m4"}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        printed += f"{line}\n{done.stdout.replace(f'{folder}/', '')}"
        printed += f"[exit status {done.returncode}]\n" if done.returncode else ""
    return printed


def run_page(page: str, folder: Path) -> str:
    """The page with what its commands print now."""

    def step(match: re.Match) -> str:
        kind, name, console, text = match.groups()
        if console:
            return f"```console\n{session(text, folder)}```\n"
        (folder / name).write_text(text if kind == "file" else changed((folder / name).read_text(), text))
        return match[0]

    return BLOCK.sub(step, page)


def test_the_page_says_what_happens(tmp_path):
    page = PAGE.read_text()
    kinds = [match[1] or match[3] for match in BLOCK.finditer(page)]
    assert {"file", "change", "console"} <= set(kinds)
    assert run_page(page, tmp_path) == page


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(run_page(PAGE.read_text(), Path(folder).resolve()))
