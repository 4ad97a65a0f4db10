"""The simulator's Metal compiler: `.metal` sources in, a metallib for the software device out.

It stands alone, without torch, so that a build can run it: `python -m compiler --help` with `mpskernels/simulator` on
the path.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import clang
from .errors import CompileError

__all__ = ["CompileError", "compile", "std_for"]


def std_for(source: str) -> str:
    """The language version that a source needs: of Metal 4 are tensors and what is made of them."""
    return "metal4.0" if re.search(r"#\s*include\s*<(metal_tensor|MetalPerformancePrimitives/)", source) else "metal3.1"


def compile(
    source: str | Path,
    output: str | Path,
    *,
    includes: Sequence[str | Path] = (),
    std: str = "metal3.1",
    math_mode: str = "fast",
    name: str = "<source>",
) -> Path:
    """Compiles Metal source to a metallib at `output` and returns its path.

    Args:
        source: a path of a `.metal` file, or the source text itself.
        includes: folders for `#include "..."`.
        std: the language version, metal3.0 to metal4.0.
        math_mode: "fast" (the default of Apple's compiler), "relaxed" or "safe".
        name: what messages call a source that is given as text.

    Raises:
        CompileError: the source does not compile; the text has file, line and reason.
    """
    output = Path(output)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, Path):
            path, name = source, ""
            if not path.exists():
                raise CompileError(f"no such file: {path}")
        else:
            path = Path(folder) / "source.metal"
            path.write_text(source)
        compiled = Path(folder) / "source.o"
        options = {"std": std, "math_mode": math_mode}
        clang.compile_object(path, compiled, includes=[Path(i) for i in includes], name=name, **options)
        clang.link([compiled], output, **options)
    return output
