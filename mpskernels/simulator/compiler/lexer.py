"""Tokens of preprocessed Metal source, with the file and line that each came from."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n\f\v]+)
  | (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<marker>^\#[^\n]*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<number>\.?\d(?:[eEpP][+-]|'?\w|\.)*)
  | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
  | (?P<punct>\[\[|\]\]|::|->\*?|\.\.\.|<<=|>>=|\+\+|--|&&|\|\||[-+*/%&|^!=<>]=|<<|.)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_LINE_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"((?:\\.|[^"\\])*)"')


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # name, number, string or punct
    text: str
    start: int
    end: int
    file: str
    line: int


def tokenize(text: str) -> list[Token]:
    """Tokens of `text`, which is the output of a C preprocessor. `]]` is split where it closes two subscripts."""
    tokens: list[Token] = []
    file, line = "", 1
    brackets: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        kind, value = match.lastgroup, match.group()
        if kind == "marker":
            if where := _LINE_MARKER.match(value):
                # The marker names the line after its own line break, which is counted below.
                file, line = where[2], int(where[1]) - 1
        elif kind == "punct" and value in ("[[", "[", "]]", "]"):
            if value.startswith("["):
                brackets.append(value)
            elif value == "]]" and (not brackets or brackets[-1] == "["):
                value = "]"  # a[b[0]]
                if brackets:
                    brackets.pop()
            elif brackets:
                brackets.pop()
            tokens.append(Token(kind, value, position, position + len(value), file, line))
        elif kind not in ("space", "comment"):
            tokens.append(Token(kind, value, position, position + len(value), file, line))
        line += value.count("\n")
        position += len(value)
    return tokens
