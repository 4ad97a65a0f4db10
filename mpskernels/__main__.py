"""python -m mpskernels info | demo"""

import argparse
import dataclasses
import json
import sys

import mpskernels


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mpskernels", description=mpskernels.__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="the device, the metallib and what has run in this process")
    info.add_argument("--json", action="store_true", help="as JSON")
    demo = commands.add_parser("demo", help="a Llama model reads a text through our kernels, checked against the CPU")
    demo.add_argument("--text", default=None, help="the file to read (default: this project's README)")
    demo.add_argument("--tokens", type=int, default=1024, help="how many of its bytes (default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.command == "info":
        found = mpskernels.info()
        print(json.dumps(dataclasses.asdict(found), indent=2) if arguments.json else found)
        return 0
    from mpskernels import demo

    return demo.run(arguments.text, arguments.tokens)


if __name__ == "__main__":
    sys.exit(main())
