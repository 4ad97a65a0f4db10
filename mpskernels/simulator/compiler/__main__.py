"""`python -m compiler`: compiles and links Metal sources for the software device."""

import argparse
import sys
import tempfile
from pathlib import Path

from . import clang
from .errors import CompileError


def main() -> int:
    parser = argparse.ArgumentParser(prog="compiler", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-c", action="store_true", help="compile one source to an object file")
    mode.add_argument("--link", action="store_true", help="link object files to a metallib")
    mode.add_argument("--instrument", action="store_true", help="print an instrumented metallib of a rewritten source")
    parser.add_argument("inputs", nargs="+", type=Path)
    parser.add_argument("-o", dest="output", type=Path, help="needed but for --instrument")
    parser.add_argument("-I", dest="includes", type=Path, action="append", default=[])
    parser.add_argument("--std", default="metal3.1", choices=sorted(clang.STDS))
    parser.add_argument("--math-mode", default="fast", choices=sorted(clang.MATH_MODES))
    parser.add_argument("--depfile", type=Path, help="write the headers that were read, for make or ninja")
    options = parser.parse_args()
    if (options.c or options.instrument) and len(options.inputs) != 1:
        parser.error("-c and --instrument take one source")
    if not options.output and not options.instrument:
        parser.error("-o is missing")
    language = {"std": options.std, "math_mode": options.math_mode}
    compiling = {**language, "includes": options.includes}
    try:
        if options.c:
            clang.compile_object(options.inputs[0], options.output, depfile=options.depfile, **compiling)
        elif options.instrument:
            print(clang.instrumented(options.inputs[0].read_text(), **language))
        elif options.link:
            clang.link(options.inputs, options.output, **language)
        else:
            with tempfile.TemporaryDirectory() as folder:
                objects = [Path(folder) / f"{i}.o" for i in range(len(options.inputs))]
                for source, compiled in zip(options.inputs, objects, strict=True):
                    clang.compile_object(source, compiled, **compiling)
                clang.link(objects, options.output, **language)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


sys.exit(main())
