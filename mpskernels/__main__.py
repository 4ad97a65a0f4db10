"""python -m mpskernels info | demo | check | profile"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import mpskernels

_ARGUMENTS = "What else is given goes to the script, and so does all that follows --."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mpskernels", description=mpskernels.__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="the device, the metallib and what has run in this process")
    info.add_argument("--json", action="store_true", help="as JSON")
    demo = commands.add_parser("demo", help="a Llama model reads a text through our kernels, checked against the CPU")
    demo.add_argument("--text", default=None, help="the file to read (default: this project's README)")
    demo.add_argument("--tokens", type=int, default=1024, help="how many of its bytes (default: %(default)s)")
    check = commands.add_parser(
        "check", allow_abbrev=False, help="runs a script and reports what its kernels do wrong", epilog=_ARGUMENTS
    )
    profile = commands.add_parser(
        "profile", allow_abbrev=False, help="runs a script and counts what its kernels do", epilog=_ARGUMENTS
    )
    profile.add_argument("--chip", action="append", help="predict times for it, as 'M4 Max'; may be repeated")
    profile.add_argument("--json", metavar="FILE", help="write all counts and predictions there")
    profile.add_argument("--plot", metavar="FILE", help="draw a roofline there, a panel for each chip")
    for command in (check, profile):
        command.add_argument("script", help="a Python file, which runs as python would run it")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments, rest = parser.parse_known_args(given[:end])
    rest += given[end + 1 :]

    if arguments.command in ("check", "profile"):
        if sys.platform == "darwin":
            parser.exit(2, f"mpskernels {arguments.command} needs the software Metal device, which Linux has\n")
        if not Path(arguments.script).is_file():
            parser.error(f"there is no file {arguments.script}")
        from mpskernels.simulator import script

        if arguments.command == "check":
            return script.run_checked(arguments.script, rest)
        options = {"names": arguments.chip, "json": arguments.json, "plot": arguments.plot}
        return script.run_profiled(arguments.script, rest, **options)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "info":
        found = mpskernels.info()
        print(json.dumps(dataclasses.asdict(found), indent=2) if arguments.json else found)
        return 0
    from mpskernels import demo

    return demo.run(arguments.text, arguments.tokens)


if __name__ == "__main__":
    sys.exit(main())
