"""Tells the device where in the source each lane waits, so that lanes that a branch has parted meet again behind it.

On the hardware, lanes that a branch has parted go on together behind it, and a loop's lanes start each iteration
together. The device sees only lanes that wait at simd operations. It lets those go first that are earliest in the
source, which is right if

- it knows every operation's place, and for one inside a function also the places of the calls that led there: `at(n)`
  before operations and calls, and a `frame` in functions that reach an operation;
- no lane runs ahead into the next iteration of a loop, where the same operation is behind and before the others:
  `join(n)` at the end of the iterations of loops in which a lane can pass an operation by.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .source import Source

_SIMD = re.compile(
    r"(simd|quad)_(sum|product|min|max|and|or|xor|all|any|ballot|broadcast|broadcast_first|is_first|active_threads_mask"
    r"|shuffle(_\w+)?|prefix_\w+)|simdgroup_barrier"
)
_BRANCHES = {"if", "?", "switch", "continue", "break", "return", "while", "for", "do", "&&", "||"}
_JUMPS = {"continue", "break", "return"}
_BEFORE_EXPRESSION = {"return", "else", "do", "case"}


def _is_simd(text: str) -> bool:
    return _SIMD.fullmatch(text) is not None


class Convergence:
    """Marks one translation unit, given the indices of the `{` of its functions and of those that are kernels."""

    def __init__(self, source: Source, bodies: set[int], kernels: set[int]):
        self.source = source
        self.tokens = source.tokens
        self.names = {body: self._name(body) for body in bodies}
        self.kernels = kernels
        self.template_values = self._template_values()
        self.reaching = self._functions_that_reach(_is_simd)  # an operation of the simdgroup
        self.marked = self.reaching | self._functions_that_reach("threadgroup_barrier".__eq__)
        self.branching = self.reaching & self._functions_that_reach(_BRANCHES.__contains__)

    def _name(self, body: int) -> str:
        """Of the function whose body opens here."""
        k = body - 1
        while self.tokens[k].text != ")":
            k -= 1
        return self.tokens[self.source.match[k] - 1].text

    def _functions_that_reach(self, wanted: Callable[[str], bool]) -> set[str]:
        """Names of the functions with such a token in their bodies, and of all that call one. Nothing calls a kernel:
        where its name is met, something else has it."""
        callable_bodies = self.names.keys() - self.kernels
        words = {body: {t.text for t in self.tokens[body : self.source.match[body]]} for body in callable_bodies}
        found = {self.names[body] for body, texts in words.items() if any(map(wanted, texts))}
        while more := {self.names[body] for body, texts in words.items() if texts & found} - found:
            found |= more
        return found

    def mark(self) -> None:
        for body, name in self.names.items():
            if body not in self.kernels and name in self.marked:
                self._frame(body)
            for i in range(body + 1, self.source.match[body]):
                text = self.tokens[i].text
                if text in ("for", "while", "do"):
                    self._loop(i)
                elif _is_simd(text) or text == "threadgroup_barrier" or text in self.marked:
                    self._call(i)

    def _frame(self, body: int) -> None:
        self.source.insert_after(body, " mpsk::frame mpsk_frame;")
        # A function that reaches an operation is no constant, whatever it says; clang wants none with such an object.
        k = body - 1
        while k >= 0 and self.tokens[k].text not in (";", "{", "}"):
            if self.tokens[k].text == "constexpr":
                self.source.edit(k, k + 1, "")
            k = self.source.before(k)

    def _call(self, i: int) -> None:
        """`a.f<T>(x)` becomes `(at(n), a.f<T>(x))`; among the arguments of another, `back(m, (at(n), a.f<T>(x)))`. Its
        place is that of its `)`, behind those of its arguments."""
        tokens, opened = self.tokens, self._arguments(i)
        if opened is None:
            return
        start = i
        while tokens[start - 1].text in (".", "->", "::"):
            qualifier = tokens[start - 2]
            if qualifier.text in _BEFORE_EXPRESSION or (qualifier.kind != "name" and qualifier.text not in (")", "]")):
                start -= 1  # ::f(x)
                break
            start -= 2
            while tokens[start].text in (")", "]"):
                start = self.source.match[start] - 1
        before = tokens[start - 1]
        if before.kind == "name" and before.text not in _BEFORE_EXPRESSION:
            return  # a declaration
        if (
            before.text == ">"
            and tokens[self.source.template_arguments_start(start - 1) - 1].text in self.source.type_names
        ):
            return  # likewise
        outer = self._enclosing_call(start)
        closed = self.source.match[opened]
        self.source.insert(start, (f"mpsk::back({2 * outer}, " if outer else "") + f"(mpsk::at({2 * closed}), ")
        self.source.insert_after(closed, "))" if outer else ")")

    def _arguments(self, i: int) -> int | None:
        """Index of the `(` of the arguments, if the name at i is called."""
        opened = i + 1
        if self.tokens[opened].text == "<":
            opened = self.source.skip_template_arguments(opened, len(self.tokens))
        return opened if self.tokens[opened].text == "(" else None

    def _enclosing_call(self, i: int) -> int | None:
        """Index of the `)` of the marked call whose arguments token i is among."""
        while (i := self.source.opening(i)) >= 0 and self.tokens[i].text != "{":
            name = i - 1
            if self.tokens[name].text == ">":
                name = self.source.template_arguments_start(name) - 1
            if _is_simd(self.tokens[name].text) or self.tokens[name].text in self.marked:
                return self.source.match[i]
        return None

    def _loop(self, i: int) -> None:
        tokens = self.tokens
        opened = i + 1 if tokens[i].text != "do" else self._statement_end(i + 1) + 2
        closed = self.source.match[opened]
        end = self._statement_end(closed + 1)
        if not self._can_be_passed_by(i, closed, end):
            return
        join = f"mpsk::join({2 * end + 1})"
        if tokens[i].text == "for":
            step = self.source.end_of_statement(self.source.end_of_statement(opened + 1) + 1)
            self.source.insert_after(step, f" {join}" + (", " if step + 1 < closed else ""))
        elif tokens[opened + 2].kind != "name":  # no declaration
            self.source.insert_after(opened, f"{join}, (")
            self.source.insert(closed, ")")

    def _can_be_passed_by(self, loop: int, head_end: int, end: int) -> bool:
        """Whether a lane that stays in the loop may pass an operation in it by."""
        tokens = self.tokens
        inside = range(loop + 1, end + 1)
        found = [k for k in inside if _is_simd(tokens[k].text) or tokens[k].text in self.reaching]
        if not found:
            return False
        if tokens[loop].text == "do" or found[0] < head_end or any(tokens[k].text in _JUMPS for k in inside):
            return True
        return any(tokens[k].text in self.branching or self._is_guarded(k, head_end) for k in found)

    def _is_guarded(self, i: int, start: int) -> bool:
        """Whether lanes may differ in whether they reach token i from `start`, the last token of the loop's head."""
        tokens, match = self.tokens, self.source.match
        k = i - 1
        while k > start:
            text = tokens[k].text
            if text == "}" and tokens[k + 1].kind != "name" and tokens[k + 1].text != "{":
                return True  # in the midst of an expression, perhaps
            if text == "else":
                head = match[k - 1] - 1 if tokens[k - 1].text == "}" else -1  # the `)` of its if
                if head < 0 or tokens[head].text != ")" or tokens[match[head] - 1].text != "if":
                    return True
                k = match[head] - 1
            elif text in (";", "}"):
                k = self.source.opening(k + 1) - 1  # out of the block
            elif text == "if" and (tokens[k + 1].text == "constexpr" or self._is_constant(k + 2, match[k + 1])):
                k -= 1
            elif text in _BRANCHES:
                return True
            else:
                k = self.source.before(k)
        return False

    def _is_constant(self, begin: int, end: int) -> bool:
        """Whether the tokens [begin, end) are an expression of numbers and of template parameters."""
        return all(t.kind != "name" or t.text in self.template_values for t in self.tokens[begin:end])

    def _template_values(self) -> set[str]:
        """Of the names of template parameters that are values, those that name nothing else."""
        tokens, names = self.tokens, self.source.template_values
        others = {
            token.text
            for i, token in enumerate(tokens)
            if token.text in names
            and tokens[i - 1].kind == "name"
            and tokens[i - 1].text not in _BEFORE_EXPRESSION
            and (tokens[i - 2].text not in ("<", ",") or tokens[self.source.opening(i)].text == "(")
        }
        return names - others

    def _statement_end(self, i: int) -> int:
        """Index of the last token of the statement at i."""
        tokens, match = self.tokens, self.source.match
        while tokens[i].text == "[[":
            i = match[i] + 1
        if tokens[i].text == "{":
            return match[i]
        if tokens[i].text == "do":
            return self._statement_end(self._statement_end(i + 1) + 1)
        if tokens[i].text in ("for", "while", "if", "switch"):
            opened = i + 1 if tokens[i + 1].text == "(" else i + 2  # if constexpr
            end = self._statement_end(match[opened] + 1)
            if tokens[i].text == "if" and tokens[end + 1].text == "else":
                end = self._statement_end(end + 2)
            return end
        return self.source.end_of_statement(i)
