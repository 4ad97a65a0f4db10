"""A preprocessed Metal source as tokens: what reads it, and the edits to be made to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import error_at
from .lexer import Token, tokenize

_SCALARS = "char uchar short ushort int uint long ulong half bfloat float".split()
BUILTIN_TYPES = (
    {"bool", "void", "unsigned", "signed", "size_t", "ptrdiff_t", *_SCALARS}
    | {f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    | {f"{scalar}{n}" for scalar in ("bool", *_SCALARS) for n in (2, 3, 4)}
    | {f"packed_{scalar}{n}" for scalar in _SCALARS for n in (2, 3, 4)}
)
TYPE_KEYWORDS = {"struct", "class", "union", "enum"}
OPEN = {"(": ")", "[": "]", "[[": "]]", "{": "}"}
CLOSE = {close: opening for opening, close in OPEN.items()}
_LITERAL = re.compile(r"(?i)^((?:\d[\d']*\.?\d*|\.\d+)(?:e[+-]?\d+)?|0x[\da-f']*\.?[\da-f']*p[+-]?\d+)(bf|h|)$")


@dataclass
class Attribute:
    name: str
    argument: str  # between its parentheses


class Source:
    """The tokens of one translation unit. An index is always that of a token."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = tokenize(text)
        self.match = self._match_brackets()
        self.edits: list[tuple[int, int, str]] = []  # positions in the text, and what is to stand between them
        self.type_names = BUILTIN_TYPES | self._declared_types()
        self.template_types = self._template_types()
        self.template_values = self._template_values()

    def _match_brackets(self) -> dict[int, int]:
        """Index of each opening bracket's closing one, and back."""
        match: dict[int, int] = {}
        stack: list[int] = []
        for i, token in enumerate(self.tokens):
            if token.kind != "punct":
                continue
            if token.text in OPEN:
                stack.append(i)
            elif token.text in CLOSE:
                if not stack or OPEN[self.tokens[stack[-1]].text] != token.text:
                    raise error_at(token, f"unbalanced '{token.text}'")
                match[stack[-1]] = i
                match[i] = stack.pop()
        if stack:
            raise error_at(self.tokens[stack[-1]], f"'{self.tokens[stack[-1]].text}' is never closed")
        return match

    def _declared_types(self) -> set[str]:
        """Names that this source declares as types."""
        names: set[str] = set()
        tokens = self.tokens
        for i, token in enumerate(tokens[:-2]):
            if token.text in TYPE_KEYWORDS | {"using"} and tokens[i + 1].kind == "name":
                named = i + 2 if tokens[i + 1].text in ("class", "struct", "namespace") else i + 1
                names.add(tokens[named].text)
            elif token.text == "typedef":
                last = tokens[self.end_of_statement(i) - 1]
                if last.kind == "name":
                    names.add(last.text)
        return names

    def _template_types(self) -> set[str]:
        """Names of template parameters that are types, such as T of `template <typename T, int N = 4>`."""
        tokens = self.tokens
        return {
            tokens[i + 1].text
            for i, token in enumerate(tokens[:-1])
            if token.text in ("typename", "class") and tokens[i - 1].text in ("<", ",") and tokens[i + 1].kind == "name"
        }

    def _template_values(self) -> set[str]:
        """Names of template parameters that are values, such as N of `template <typename T, int N = 4>`."""
        tokens, types = self.tokens, self.type_names | self.template_types
        names = {
            tokens[i + 1].text
            for i, token in enumerate(tokens[:-2])
            if token.text in types and tokens[i - 1].text in ("<", ",") and tokens[i + 2].text in (",", ">", "=")
        }
        return names - types

    # --- reading ------------------------------------------------------------------------------------------------------

    def after(self, i: int) -> int:
        """The index after token i, or after the bracket that it opens."""
        return self.match[i] + 1 if self.tokens[i].text in OPEN else i + 1

    def before(self, i: int) -> int:
        """The index before token i, or before the bracket that it closes."""
        return self.match[i] - 1 if self.tokens[i].text in CLOSE else i - 1

    def opening(self, i: int) -> int:
        """The index of the bracket that encloses token i, or -1."""
        k = i - 1
        while k >= 0 and self.tokens[k].text not in OPEN:
            k = self.before(k)
        return k

    def end_of_statement(self, i: int) -> int:
        """The index of the `;` that ends the statement or declaration with token i."""
        while self.tokens[i].text != ";" and i + 1 < len(self.tokens):
            i = self.after(i)
        return i

    def end_of_declarator(self, start: int, stop: int) -> int:
        """Of the declaration at `start`: the index of its parameters' or initialiser's `(`, of its `=`, `{` or `;`."""
        i = start
        while i < stop and self.tokens[i].text not in ("=", "{", "(", ";"):
            text = self.tokens[i].text
            if text == "<":
                i = self.skip_template_arguments(i, stop)
            else:
                i = self.after(i + 1 if text in ("alignas", "decltype", "__attribute__") else i)
        return i

    def skip_template_arguments(self, i: int, end: int) -> int:
        """`i` is at `<`: the index after its `>`."""
        depth = 0
        while i < end:
            text = self.tokens[i].text
            if text == "<":
                depth += depth == 0 or self._opens_arguments(i)
            elif text == ">":
                depth -= 1
                if depth == 0:
                    return i + 1
            elif text == ";":
                break
            i = self.after(i)
        raise error_at(self.tokens[min(i, end - 1)], "template argument list is never closed")

    def _opens_arguments(self, i: int) -> bool:
        """Whether the `<` at i may open template arguments: after a number, a bracket or a value it compares."""
        before = self.tokens[i - 1]
        return before.kind == "name" and before.text not in self.template_values

    def template_arguments_start(self, i: int) -> int:
        """`i` is at `>`: the index of its `<`, or of what shows that it is no bracket."""
        depth = 0
        while i >= 0:
            depth += {">": 1, "<": -1}.get(self.tokens[i].text, 0)
            if depth == 0 or self.tokens[i].text in (";", "{", "}"):
                break
            i -= 1
        return i

    def split(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """What commas separate among the tokens [begin, end)."""
        i = start = begin
        while i < end:
            if self.tokens[i].text == ",":
                yield start, i
                start = i = i + 1
            elif self.tokens[i].text == "<" and self._opens_arguments(i):
                i = self.skip_template_arguments(i, end)
            else:
                i = self.after(i)
        if start < end:
            yield start, end

    def statements(self, begin: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """Declarations among [begin, end): first token, end, and the index of the `{` of a body."""
        i = begin
        while i < end:
            start, body = i, None
            while i < end and body is None and self.tokens[i].text != ";":
                if self.tokens[i].text == "{" and not self._opens_initialiser(start, i):
                    body = i
                i = self.after(i)
            if body is None or self._is_type(start, body) or (i < end and self.tokens[i].text == ";"):
                i = min(self.end_of_statement(i) + 1, end) if i < end else end
            yield start, i, body

    def _opens_initialiser(self, start: int, i: int) -> bool:
        """Whether the `{` at i, in the declaration at `start`, gives a value."""
        if i > start and self.tokens[i - 1].text in ("=", ","):
            return True
        head = {t.text for t in self.tokens[start:i]}
        return bool(head & {"=", "constant"}) and not head & (TYPE_KEYWORDS | {"(", "operator", "namespace"})

    def _is_type(self, start: int, body: int) -> bool:
        """Whether the declaration with this body is of a type, after which a `;` comes, perhaps behind declarators."""
        words = {t.text for t in self.outside_templates(start, body)}
        return bool(words & TYPE_KEYWORDS) and "(" not in words

    def outside_templates(self, begin: int, end: int) -> list[Token]:
        """Tokens of [begin, end) without a leading `template <...>` and attributes."""
        i, kept = begin, []
        while i < end:
            if self.tokens[i].text == "template" and self.tokens[i + 1].text == "<":
                i = self.skip_template_arguments(i + 1, end)
            elif self.tokens[i].text in ("[[", "__attribute__"):
                i = self.after(i if self.tokens[i].text == "[[" else i + 1)
            else:
                kept.append(self.tokens[i])
                i += 1
        return kept

    def attributes(self, begin: int, end: int) -> list[Attribute]:
        """All attributes among the tokens [begin, end)."""
        found: list[Attribute] = []
        for opening in (i for i in range(begin, end) if self.tokens[i].text == "[["):
            for start, stop in self.split(opening + 1, self.match[opening]):
                at = next((i for i in range(start, stop) if self.tokens[i].text == "("), stop)
                name = "".join(t.text for t in self.tokens[start:at])
                found.append(Attribute(name, self.text_of(at + 1, self.match[at]) if at < stop else ""))
        return found

    def text_of(self, begin: int, end: int) -> str:
        """Source of the tokens [begin, end), without attributes, on one line."""
        parts: list[str] = []
        i = begin
        while i < end:
            if self.tokens[i].text == "[[":
                i = self.match[i]
            else:
                parts.append(self.literal(i) or self.tokens[i].text)
            i += 1
        return " ".join(parts)

    def literal(self, i: int) -> str | None:
        """What stands for a literal: of half or bfloat, without suffix (a float: in templates clang forgets
        -cl-single-precision-constant), or of text, which lies in `constant`."""
        token = self.tokens[i]
        if token.kind == "string" and self._is_text(i):
            return f"mpsk_value->*{token.text}"
        if token.kind == "number" and (literal := _LITERAL.match(token.text)):
            digits, suffix = literal[1], literal[2].lower()
            is_float = re.search(r"[.eEpP]", digits)
            if suffix:
                return f"{'half' if suffix == 'h' else 'bfloat'}({digits}{'' if is_float else '.0'}f)"
            if is_float:
                return digits + "f"
        return None

    def _is_text(self, i: int) -> bool:
        """Whether the string at i is a value of the program: an argument of a function, or an initialiser."""
        before = self.tokens[i - 1]
        if not self.tokens[i].text.startswith('"') or before.text not in ("(", ",", "=", "{", "return"):
            return False  # of a declaration, or the continuation of another
        k = self.opening(i)
        return self.tokens[k].text != "(" or self.tokens[k - 1].text not in ("static_assert", "host_name", "deprecated")

    # --- editing ------------------------------------------------------------------------------------------------------

    def edit(self, begin: int, end: int, replacement: str) -> None:
        """Replaces the tokens [begin, end), keeping the number of lines."""
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        lines = self.text[start:stop].count("\n") - replacement.count("\n")
        self.edits.append((start, stop, replacement + "\n" * max(lines, 0)))

    def insert(self, i: int, text: str) -> None:
        """Puts text before token i."""
        self.edits.append((self.tokens[i].start, self.tokens[i].start, text))

    def insert_after(self, i: int, text: str) -> None:
        self.edits.append((self.tokens[i].end, self.tokens[i].end, text))

    def drop_words(self, begin: int, end: int, words: set[str]) -> None:
        for i in range(begin, end):
            if self.tokens[i].text in words:
                self.edit(i, i + 1, "")

    def edited(self) -> str:
        """The text with all edits. One inside another is part of what that one replaced; insertions come first."""
        pieces: list[str] = []
        position = 0
        for start, end, replacement in sorted(self.edits, key=lambda e: (e[0], e[1] > e[0], -e[1])):
            if start >= position:
                pieces += [self.text[position:start], replacement]
                position = end
        pieces.append(self.text[position:])
        return "".join(pieces)
