"""Turns preprocessed Metal source into C++ for OpenCL that clang compiles for the host.

Clang's C++ for OpenCL has Metal's address spaces, but not all of its grammar. What differs is rewritten on tokens, in place, so
that every line keeps its number:

- `[[...]]` attributes are read and removed; a table of kernels and their arguments is appended;
- `template [[host_name("x")]] kernel ...` becomes a plain explicit instantiation;
- function constants become variables that the device sets before a launch;
- program-scope `constant` objects become objects that clang can place, and references to them;
- `threadgroup` declarations in kernels become references into the threadgroup's memory;
- literals with the suffixes h and bf become conversions.

What Metal refuses and this clang would take is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import CompileError
from .lexer import Token, tokenize

ADDRESS_SPACES = {"device", "constant", "threadgroup", "thread"}
# Attribute -> how the table's entry function computes it from a thread `t`.
_POSITIONS = {
    "thread_position_in_grid": "t->position_in_grid",
    "thread_position_in_threadgroup": "t->position_in_threadgroup",
    "threadgroup_position_in_grid": "t->group->position",
    "threads_per_grid": "t->group->grid->threads",
    "grid_size": "t->group->grid->threads",
    "grid_origin": "mpsk_size{0, 0, 0}",
    "threads_per_threadgroup": "t->group->threads",
    "dispatch_threads_per_threadgroup": "t->group->grid->dispatch_threads_per_threadgroup",
    "threadgroups_per_grid": "t->group->grid->threadgroups",
}
_INDICES = {
    "thread_index_in_threadgroup": "t->index_in_threadgroup",
    "thread_index_in_simdgroup": "t->lane",
    "simdgroup_index_in_threadgroup": "t->simdgroup",
    "simdgroups_per_threadgroup": "t->group->simdgroups",
    "dispatch_simdgroups_per_threadgroup": "t->group->dispatch_simdgroups",
    "threads_per_simdgroup": "MPSK_SIMD_WIDTH",
    "thread_execution_width": "MPSK_SIMD_WIDTH",
    "thread_index_in_quadgroup": "t->lane % 4",
    "quadgroup_index_in_threadgroup": "t->index_in_threadgroup / 4",
    "quadgroups_per_threadgroup": "(t->group->threads.x * t->group->threads.y * t->group->threads.z + 3) / 4",
}
_ARGUMENT_ATTRIBUTES = {"buffer", "threadgroup", "function_constant", "maybe_unused"}
_REFUSED_WORDS = {
    "new": "operator new",
    "delete": "operator delete",
    "throw": "exceptions",
    "try": "exceptions",
    "catch": "exceptions",
    "goto": "goto",
    "typeid": "typeid",
    "dynamic_cast": "dynamic_cast",
    "thread_local": "thread_local",
    "register": "register",
    "asm": "inline assembly",
    "__asm": "inline assembly",
    "__asm__": "inline assembly",
    "virtual": "virtual functions",
    "double": "double",
}
_BUILTIN_TYPES = (
    {"bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "bfloat", "float", "void"}
    | {"unsigned", "signed", "size_t", "ptrdiff_t", "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t"}
    | {"int64_t", "uint64_t"}
    | {
        f"{scalar}{n}"
        for scalar in (
            "bool char uchar short ushort int uint long ulong half bfloat float".split()
            + [f"packed_{s}" for s in "char uchar short ushort int uint long half bfloat float".split()]
        )
        for n in (2, 3, 4)
    }
)
_OPEN = {"(": ")", "[": "]", "[[": "]]", "{": "}"}
_LITERAL = re.compile(r"(?i)^((?:\d[\d']*\.?\d*|\.\d+)(?:e[+-]?\d+)?|0x[\da-f']*\.?[\da-f']*p[+-]?\d+)(bf|h|)$")
# Preprocessing leaves the arguments of a pragma alone, so that macros in them mean nothing to the compiler.
_UNROLL = re.compile(r"(?m)^([ \t]*#[ \t]*pragma[ \t]+(?:unroll|GCC[ \t]+unroll)\b)[^\n]*[A-Za-z_][^\n]*$")


@dataclass
class Attribute:
    name: str
    argument: str  # between its parentheses


@dataclass
class Parameter:
    name: str
    type: str
    attributes: list[Attribute]
    token: Token  # its first
    threadgroup: bool


@dataclass
class Instance:
    """What a host name stands for."""

    host_name: str
    expression: str  # of C++, for the function
    token: Token
    parameters: str = ""  # as the instantiation lists them


@dataclass
class Kernel:
    name: str  # qualified with namespaces
    parameters: list[Parameter]
    token: Token
    body: tuple[int, int]  # token indices of { and }
    template_arguments: tuple[int, int] | None  # of a template: the least and the most that it takes
    max_threads: str = ""  # a constant, or a template of one
    instances: list[Instance] = field(default_factory=list)

    def accepts(self, count: int) -> bool:
        return self.template_arguments[0] <= count <= self.template_arguments[1]


@dataclass
class Constant:
    name: str
    type: str
    index: str


class Rewriter:
    """One translation unit. `result()` gives the rewritten text."""

    def __init__(self, text: str, std: str = "metal3.1"):
        self.text = text
        self.version = float(std.removeprefix("metal"))
        self.tokens = tokenize(text)
        self.match = self._match_brackets()
        self.edits: list[tuple[int, int, str]] = []
        self.kernels: dict[str, list[Kernel]] = {}  # those of one name
        self.kernel_bodies: list[tuple[int, int]] = []  # indices of their { and }
        self.constants: dict[str, Constant] = {}
        self.derived: dict[str, set[str]] = {}  # derived constant -> names in its initialiser
        self.scalar_constants: set[str] = set()  # program-scope constants that are no objects in memory
        self.instantiations: set[int] = set()  # indices of tokens in explicit instantiations
        self.struct_names: dict[int, str] = {}  # by the index of the `{` of its members
        self.uses: dict[str, set[str]] = {}  # program-scope name -> identifiers in its definition
        self.type_names = set(_BUILTIN_TYPES) | self._declared_types()
        self.template_parameters = self._template_parameters()
        self.template_values = self._template_values()
        self.takes_constants = self._takes_constants()
        self.has_conversions = bool(re.search(r"\boperator\s+(?!new|delete)\w+\s*\(", text))

    # --- helpers ---------------------------------------------------------------------------------------------------

    def error(self, token: Token, message: str) -> CompileError:
        return CompileError(f"{token.file}:{token.line}: error: {message}")

    def _match_brackets(self) -> dict[int, int]:
        """Index of each opening bracket's closing one, and back."""
        match: dict[int, int] = {}
        stack: list[int] = []
        for i, token in enumerate(self.tokens):
            if token.kind != "punct":
                continue
            if token.text in _OPEN:
                stack.append(i)
            elif token.text in _OPEN.values():
                if not stack or _OPEN[self.tokens[stack[-1]].text] != token.text:
                    raise self.error(token, f"unbalanced '{token.text}'")
                match[stack[-1]] = i
                match[i] = stack.pop()
        if stack:
            raise self.error(self.tokens[stack[-1]], f"'{self.tokens[stack[-1]].text}' is never closed")
        return match

    def _text(self, begin: int, end: int) -> str:
        """Source of the tokens [begin, end), without attributes, on one line."""
        parts: list[str] = []
        i = begin
        while i < end:
            if self.tokens[i].text == "[[":
                i = self.match[i] + 1
                continue
            if literal := self._literal(i):
                parts.append(literal)
            else:
                parts.append(self.tokens[i].text)
            i += 1
        return " ".join(parts)

    def _edit(self, begin: int, end: int, replacement: str) -> None:
        """Replaces the tokens [begin, end), keeping the number of lines."""
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        lines = self.text[start:stop].count("\n") - replacement.count("\n")
        self.edits.append((start, stop, replacement + "\n" * max(lines, 0)))

    def _insert(self, i: int, text: str) -> None:
        """Puts text before the token at `i`."""
        self.edits.append((self.tokens[i].start, self.tokens[i].start, text))

    def _skip_template_arguments(self, i: int, end: int) -> int:
        """`i` is at `<`: the index after its `>`."""
        depth = 0
        while i < end:
            text = self.tokens[i].text
            if text in ("(", "[", "{", "[["):
                i = self.match[i]
            elif text == "<":
                depth += depth == 0 or self._opens_arguments(i)
            elif text == ">":
                depth -= 1
                if depth == 0:
                    return i + 1
            elif text == ";":
                break
            i += 1
        raise self.error(self.tokens[min(i, end - 1)], "template argument list is never closed")

    def _opens_arguments(self, i: int) -> bool:
        """Whether the `<` at `i` may open template arguments: it compares after a number, a bracket or a template's value."""
        before = self.tokens[i - 1]
        return before.kind == "name" and before.text not in self.template_values

    def _attributes(self, begin: int, end: int) -> list[Attribute]:
        """All attributes among the tokens [begin, end)."""
        found: list[Attribute] = []
        i = begin
        while i < end:
            if self.tokens[i].text != "[[":
                i += 1
                continue
            close = self.match[i]
            j = i + 1
            while j < close:
                if self.tokens[j].kind == "name":
                    name, argument = self.tokens[j].text, ""
                    if self.tokens[j + 1].text == "::":
                        j += 2
                        name += "::" + self.tokens[j].text
                    if self.tokens[j + 1].text == "(":
                        argument = self._text(j + 2, self.match[j + 1])
                        j = self.match[j + 1]
                    found.append(Attribute(name, argument))
                j += 1
            i = close + 1
        return found

    def _declared_types(self) -> set[str]:
        """Names that this source declares as types."""
        names: set[str] = set()
        tokens = self.tokens
        for i, token in enumerate(tokens[:-2]):
            if token.text in ("struct", "class", "union", "enum", "using") and tokens[i + 1].kind == "name":
                j = i + 1
                if tokens[j].text in ("class", "struct", "namespace"):
                    j += 1
                names.add(tokens[j].text)
            elif token.text == "typedef":
                j = i
                while tokens[j].text != ";" and j + 1 < len(tokens):
                    j = self.match[j] + 1 if tokens[j].text in _OPEN else j + 1
                if tokens[j - 1].kind == "name":
                    names.add(tokens[j - 1].text)
        return names

    def _template_parameters(self) -> set[str]:
        names: set[str] = set()
        for i, token in enumerate(self.tokens[:-1]):
            if token.text in ("typename", "class") and self.tokens[i - 1].text in ("<", ",") and i:
                if self.tokens[i + 1].kind == "name":
                    names.add(self.tokens[i + 1].text)
        return names

    def _template_values(self) -> set[str]:
        """Names of template parameters that are values, such as N of `template <typename T, int N = 4>`."""
        names: set[str] = set()
        for i, token in enumerate(self.tokens[:-2]):
            follows = self.tokens[i + 2].text in (",", ">", "=")
            if token.text in self.type_names | self.template_parameters and self.tokens[i + 1].kind == "name" and follows:
                if self.tokens[i - 1].text in ("<", ","):
                    names.add(self.tokens[i + 1].text)
        return names - self.type_names

    # --- program scope ----------------------------------------------------------------------------------------------

    def _statements(self, begin: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """Declarations among [begin, end): first token, end, and the index of the `{` of a body."""
        i = begin
        while i < end:
            start, body = i, None
            while i < end:
                text = self.tokens[i].text
                if text == ";":
                    i += 1
                    break
                if text == "{":
                    previous = self.tokens[i - 1].text if i > start else ""
                    opened, i = i, self.match[i] + 1
                    head = {t.text for t in self.tokens[start:opened]}
                    initialiser = previous in ("=", ",") or (
                        head & {"=", "constant"}
                        and not head & {"(", "struct", "union", "class", "enum", "operator", "namespace"}
                    )
                    if initialiser:
                        continue
                    body = opened
                    is_type = head & {"struct", "union", "class", "enum"} and "(" not in {
                        t.text for t in self._outside_templates(start, opened)
                    }
                    if is_type or (i < end and self.tokens[i].text == ";"):
                        while i < end and self.tokens[i - 1].text != ";":
                            i = self.match[i] + 1 if self.tokens[i].text in _OPEN else i + 1
                    break
                i = self.match[i] + 1 if text in _OPEN else i + 1
            yield start, i, body

    def _outside_templates(self, begin: int, end: int) -> list[Token]:
        """Tokens of [begin, end) without a leading `template <...>` and attributes."""
        i, kept = begin, []
        while i < end:
            if self.tokens[i].text == "template" and self.tokens[i + 1].text == "<":
                i = self._skip_template_arguments(i + 1, end)
            elif self.tokens[i].text in ("[[", "__attribute__"):
                i = self.match[i if self.tokens[i].text == "[[" else i + 1] + 1
            else:
                kept.append(self.tokens[i])
                i += 1
        return kept

    def _program_scope(self, begin: int, end: int, namespace: str) -> None:
        for start, stop, body in self._statements(begin, end):
            head = self._outside_templates(start, body if body is not None else stop)
            words = [t.text for t in head]
            if not words or words == [";"]:
                continue
            if words[0] in ("namespace", "inline") and "namespace" in words[:2] and body is not None:
                name = "".join(words[words.index("namespace") + 1 :])
                self._program_scope(body + 1, self.match[body], f"{namespace}{name}::" if name else namespace)
                continue
            if words[0] == "extern" and body is not None and len(head) == 2:
                self._program_scope(body + 1, self.match[body], namespace)
                continue
            attributes = self._attributes(start, body if body is not None else stop)
            identifiers = {t.text for t in self.tokens[start:stop] if t.kind == "name"}
            is_kernel = "kernel" in words or any(a.name == "kernel" for a in attributes)
            if is_kernel or any(a.name == "host_name" for a in attributes):
                if words[0] == "template" and body is None:
                    self._instantiation(start, stop, attributes, namespace)
                elif is_kernel:
                    self._kernel(start, stop, body, attributes, namespace)
            elif body is None and self._declares_constant(start, stop):
                self._constant(start, stop, attributes)
            elif words[0] not in ADDRESS_SPACES and body is None and self._is_variable(words):
                raise self.error(self.tokens[start], "a program-scope variable must be in the constant address space")
            elif words[0] in ("device", "threadgroup", "thread") and body is None and "(" not in words:
                raise self.error(self.tokens[start], "a program-scope variable must be in the constant address space")
            for name in self._defined_names(head):
                self.uses.setdefault(name, set()).update(identifiers)

    @staticmethod
    def _is_variable(words: list[str]) -> bool:
        if set(words) & {"using", "typedef", "struct", "class", "union", "enum", "template", "friend", "static_assert"}:
            return False
        if words[0].startswith("_Pragma") or "operator" in words or "extern" in words:
            return False
        cut = words.index("=") if "=" in words else len(words)
        return "(" not in words[:cut] and len(words) >= 3

    @staticmethod
    def _defined_names(head: list[Token]) -> list[str]:
        """Names that a declaration introduces: of a type all names in its head, of anything else the last; `operator` stands for
        all operators."""
        names: list[str] = []
        for token in head:
            if token.text in ("(", "[", "{", "=", ";"):
                break
            if token.kind == "name":
                names.append(token.text)
        if "operator" in names:
            return ["operator"]
        types = {"struct", "class", "union", "enum"}
        return [name for name in names if name not in types] if types & set(names) else names[-1:]

    def _end_of_declarator(self, start: int, stop: int) -> int:
        """Of the declaration at `start`: the index of its initialiser's `=`, `{` or `(`, of its parameters' `(`, or of its `;`."""
        i = start
        while i < stop and self.tokens[i].text not in ("=", "{", "(", ";"):
            text = self.tokens[i].text
            if text == "<":
                i = self._skip_template_arguments(i, stop)
            elif text in ("alignas", "decltype", "__attribute__"):
                i = self.match[i + 1] + 1
            else:
                i = self.match[i] + 1 if text in _OPEN else i + 1
        return i

    def _declares_constant(self, start: int, stop: int) -> bool:
        """Whether the declaration is of an object in the constant address space, not of a function."""
        end = self._end_of_declarator(start, stop)
        words = {t.text for t in self._outside_templates(start, end)}
        is_function = end < stop and self.tokens[end].text == "(" and words & {"*", "&"}
        return "constant" in words and not is_function and not words & {"using", "typedef", "operator"}

    def _constant(self, start: int, stop: int, attributes: list[Attribute]) -> None:
        """A program-scope variable in the constant address space."""
        tokens = self.tokens
        end = self._end_of_declarator(start, stop)
        has_value = tokens[end].text != ";"
        if tokens[start].text == "template" and has_value:
            # Instances of a variable template are constants of the compiler's, which need no place in memory.
            self._drop_words(start, end, {"constant"})
            return
        name_index = end - 1
        while tokens[name_index].text in ("]", "]]"):
            name_index = self.match[name_index] - 1
        name_token = tokens[name_index]
        if name_token.kind != "name":
            raise self.error(tokens[start], "cannot read this declaration in the constant address space")
        if tokens[name_index - 1].text == "::":
            self._static_member(start, stop, has_value)
        elif marked := [a for a in attributes if a.name == "function_constant"]:
            if has_value:
                raise self.error(name_token, f"function constant '{name_token.text}' cannot have an initialiser")
            self._function_constant(start, stop, name_index, marked[0].argument)
        elif has_value:
            self._constant_object(start, stop, name_index, end)
        else:
            raise self.error(name_token, f"'{name_token.text}' in the constant address space needs an initialiser")

    def _static_member(self, start: int, stop: int, has_value: bool) -> None:
        """The definition of a static member, outside its class. One without a value repeats what the class has said."""
        if has_value:
            self._drop_words(start, stop, {"constant"})
        else:
            self._edit(start, stop, "")

    def _drop_words(self, begin: int, end: int, words: set[str]) -> None:
        for i in range(begin, end):
            if self.tokens[i].text in words:
                self._edit(i, i + 1, "")

    def _type_of_constant(self, start: int, name_index: int) -> str:
        dropped = {"constant", "const", "static", "constexpr", "inline"}
        return " ".join(part for part in self._text(start, name_index).split() if part not in dropped)

    def _function_constant(self, start: int, stop: int, name_index: int, index: str) -> None:
        name, type_text = self.tokens[name_index].text, self._type_of_constant(start, name_index)
        self.constants[name] = Constant(name, type_text, index)
        self._edit(start, stop, f"static {type_text} {name}; static bool mpsk_defined_{name};")

    def _constant_object(self, start: int, stop: int, name_index: int, initialiser: int) -> None:
        """An object with a value: one that depends on function constants is computed by the device, a scalar is a constant of
        the compiler's, others are objects that clang can place, with references to them."""
        name, type_text = self.tokens[name_index].text, self._type_of_constant(start, name_index)
        extents, value = self._text(name_index + 1, initialiser), self._text(initialiser, stop - 1)
        used = {t.text for t in self.tokens[initialiser:stop] if t.kind == "name"}
        if used & (self.constants.keys() | self.derived.keys()):
            self.derived[name] = used
            value = re.sub(r"is_function_constant_defined \( (\w+) \)", r"mpsk_defined_\1", value.removeprefix("= "))
            self._edit(start, stop, f"static {type_text} {name}; static void mpsk_derive_{name}() {{ {name} = {value}; }}")
            return
        is_constexpr = any(t.text == "constexpr" for t in self.tokens[start:name_index])
        integral = set(type_text.split()) <= _BUILTIN_TYPES - {"half", "bfloat", "float", "void"}
        if not extents and (is_constexpr or integral):
            self.scalar_constants.add(name)
            self._edit(start, stop, f"static constexpr {type_text} {name} {value};")
            return
        self._edit(
            start,
            stop,
            f"static const {type_text} mpsk_object_{name} {extents} {value}; "
            f"static auto& {name} = mpsk::as_constant(mpsk_object_{name});",
        )

    def _kernel(self, start: int, stop: int, body: int | None, attributes: list[Attribute], namespace: str) -> None:
        """A kernel, a kernel template or a specialisation of one."""
        tokens = self.tokens
        is_template = tokens[start].text == "template"
        i = self._skip_template_arguments(start + 1, stop) if is_template else start
        open_paren = self._parameter_list(i, stop)
        if open_paren is None:
            raise self.error(tokens[start], "'kernel' needs a function")
        name_index = open_paren - 1
        if tokens[name_index].text == ">":  # a specialisation: k<float>
            while tokens[name_index].text != "<":
                name_index -= 1
            name_index -= 1
        name_token = tokens[name_index]
        return_type = {t.text for t in self._outside_templates(i, name_index)} - {"kernel", "inline", "static"}
        if return_type != {"void"}:
            raise self.error(name_token, f"kernel '{name_token.text}' must return void")
        self._drop_words(i, name_index, {"kernel", "static"})
        # Into its entry function, by which the device recognises the kernel's threadgroup memory.
        inlined = f"{'inline' if is_template else 'static'} __attribute__((always_inline)) "
        self._insert(name_index, inlined)
        if body is None:
            return  # a declaration
        self.kernel_bodies.append((body, self.match[body]))
        self._threadgroup_declarations(body)
        host_names = [a.argument for a in attributes if a.name == "host_name"]
        if name_index + 1 < open_paren:
            kernel = self._kernel_of(name_index, open_paren, namespace)
            expression = namespace + self._text(name_index, open_paren)
            kernel.instances += [Instance(name, expression, name_token) for name in host_names]
            return
        qualified = namespace + name_token.text
        overloads = self.kernels.setdefault(qualified, [])
        if overloads and not (is_template and overloads[0].template_arguments):
            raise self.error(name_token, f"kernel '{qualified}' cannot be overloaded")
        kernel = Kernel(
            qualified,
            self._parameters(open_paren + 1, self.match[open_paren]),
            name_token,
            (body, self.match[body]),
            self._template_argument_counts(start + 1, i) if is_template else None,
        )
        overloads.append(kernel)
        if not is_template:
            kernel.instances.append(Instance(host_names[0] if host_names else f'"{qualified}"', qualified, name_token))
        for attribute in attributes:
            if attribute.name == "max_total_threads_per_threadgroup":
                # A number of its own, for it may depend on the template's parameters.
                number = f"mpsk_max_threads_{name_token.text}_{len(overloads)}"
                kernel.max_threads = namespace + number
                head = self._text(start, i) if is_template else ""
                self._insert(start, f"{head} constexpr unsigned {number} = {attribute.argument}; ")

    def _parameter_list(self, i: int, stop: int) -> int | None:
        """The index of the `(` of the parameters of the function that the declaration at `i` names."""
        tokens = self.tokens
        while i < stop and tokens[i].text not in ("{", ";", "="):
            if tokens[i].text in ("__attribute__", "alignas", "decltype"):
                i = self.match[i + 1] + 1
            elif tokens[i].text == "(":
                return i
            else:
                i = self.match[i] + 1 if tokens[i].text in _OPEN else i + 1
        return None

    def _split(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """What commas separate among the tokens [begin, end)."""
        i = start = begin
        while i < end:
            text = self.tokens[i].text
            if text == ",":
                yield start, i
                start = i = i + 1
            elif text == "<" and self._opens_arguments(i):
                i = self._skip_template_arguments(i, end)
            else:
                i = self.match[i] + 1 if text in _OPEN else i + 1
        if start < end:
            yield start, end

    def _template_argument_counts(self, begin: int, end: int) -> tuple[int, int]:
        """How many arguments the template with the parameters `<...>` at [begin, end) takes, at least and at most."""
        texts = [{t.text for t in self.tokens[i:j]} for i, j in self._split(begin + 1, end - 1)]
        most = 1000 if any("..." in words for words in texts) else len(texts)
        return sum(not words & {"=", "..."} for words in texts), most

    def _kernel_of(self, begin: int, end: int, namespace: str) -> Kernel:
        """The kernel template that `name<...>`, or `name`, at [begin, end) means."""
        arguments = next((i for i in range(begin, end) if self.tokens[i].text == "<"), end)
        name = self._text(begin, arguments).replace(" ", "")
        overloads = self.kernels.get(namespace + name) or self.kernels.get(name, [])
        if arguments < end:
            count = sum(1 for _ in self._split(arguments + 1, end - 1))
            overloads = [k for k in overloads if k.template_arguments and k.accepts(count)]
        if not overloads:
            raise self.error(self.tokens[begin], f"'{name}' is not a kernel template with these arguments")
        if len(overloads) > 1:
            raise self.error(self.tokens[begin], f"'{name}' may be any of {len(overloads)} kernel templates")
        return overloads[0]

    def _parameters(self, begin: int, end: int) -> list[Parameter]:
        parameters: list[Parameter] = []
        for start, stop in self._split(begin, end):
            words = self._outside_templates(start, stop)
            if [w.text for w in words] == ["void"]:
                continue
            last = [k for k, t in enumerate(words) if t.kind == "name"][-1]
            type_text = " ".join(t.text for t in words[:last])
            is_threadgroup = any(w.text == "threadgroup" for w in words[:last])
            attributes = self._attributes(start, stop)
            parameters.append(Parameter(words[last].text, type_text, attributes, words[0], is_threadgroup))
        return parameters

    def _instantiation(self, start: int, stop: int, attributes: list[Attribute], namespace: str) -> None:
        """template [[host_name("x")]] kernel void k<float>(...);   or   ... void k(...);   or   ... decltype(k<float>) k<float>;"""
        tokens = self.tokens
        self.instantiations.update(range(start, stop))
        open_paren = self._parameter_list(start, stop)
        end = stop - 1 if open_paren is None else open_paren
        begin = end
        if tokens[end - 1].text == ">":
            while tokens[begin].text != "<" or not self._skip_template_arguments(begin, stop) == end:
                begin -= 1
                if begin == start:
                    raise self.error(tokens[start], "cannot read this kernel instantiation")
        begin -= 1
        while tokens[begin - 1].text == "::":
            begin -= 2
        for k in range(start, stop):
            if tokens[k].text == "kernel" and tokens[k - 1].text not in ("[[", ","):
                self._edit(k, k + 1, "")
        # A declaration checks as much, and emits nothing beside the entry function.
        self._insert(start, "extern ")
        kernel = self._kernel_of(begin, end, namespace)
        expression = self._text(begin, end)
        if not kernel.name == expression.split("<")[0].replace(" ", ""):
            expression = namespace + expression
        prototype = "" if open_paren is None else self._text(open_paren, self.match[open_paren] + 1)
        if tokens[end - 1].text != ">" and kernel.max_threads:
            raise self.error(tokens[begin], f"the instantiation of '{kernel.name}' must name its template arguments")
        kernel.instances += [
            Instance(a.argument, expression, tokens[begin], prototype) for a in attributes if a.name == "host_name"
        ]

    # --- inside functions -------------------------------------------------------------------------------------------

    def _declaration_end(self, i: int) -> int:
        while self.tokens[i].text != ";":
            i = self.match[i] + 1 if self.tokens[i].text in _OPEN else i + 1
        return i

    def _threadgroup_declarations(self, body: int) -> None:
        """Memory that a kernel declares for its threadgroup."""
        tokens, number = self.tokens, 0
        for i in range(body + 1, self.match[body]):
            if tokens[i].text != "threadgroup" or not self._starts_statement(i):
                continue
            end = self._declaration_end(i)
            begin, align = i + 1, "0"
            first = i
            while tokens[first - 1].text == ")" and tokens[self.match[first - 1] - 1].text == "alignas":
                align = self._text(self.match[first - 1] + 1, first - 1)
                first = self.match[first - 1] - 1
            if tokens[begin].text == "alignas":
                align = self._text(begin + 2, self.match[begin + 1])
                begin = self.match[begin + 1] + 1
            # The type: names, :: and template arguments, up to the declared name.
            k = begin
            while True:
                if tokens[k].text == "<":
                    k = self._skip_template_arguments(k, end)
                elif tokens[k].text == "(":
                    k = self.match[k] + 1
                elif tokens[k].text in ("*", "&", ";", ",", "=", "["):
                    break
                else:
                    k += 1
            if tokens[k].text in ("*", "&"):
                continue  # a pointer or reference, which is a variable of the thread
            name_index = k - 1
            type_text = self._text(begin, name_index)
            replacement = ""
            while name_index < end:
                k = name_index + 1
                while tokens[k].text == "[":
                    k = self.match[k] + 1
                name, extents = tokens[name_index].text, self._text(name_index + 1, k)
                # Apple's compiler takes an initialiser, and gives the memory no value.
                while tokens[k].text not in (",", ";"):
                    k = self.match[k] + 1 if tokens[k].text in _OPEN else k + 1
                replacement += (
                    f"threadgroup auto& {name} = mpsk::threadgroup_memory<{number}, {align}, {type_text} {extents}>(); "
                )
                number += 1
                name_index = k + 1
            self._edit(first, end + 1, replacement)

    def _starts_statement(self, i: int) -> bool:
        k = i - 1
        while self.tokens[k].text == ")" and self.tokens[self.match[k] - 1].text == "alignas":
            k = self.match[k] - 2
        return self.tokens[k].text in (";", "{", "}", ":")

    def _literal(self, i: int) -> str | None:
        """What stands for a literal: of half or bfloat, without suffix (a float: clang forgets -cl-single-precision-constant in
        templates), or of text, which lies in `constant`."""
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
        """Whether the string at `i` is a value of the program: an argument of a function, or an initialiser."""
        before = self.tokens[i - 1]
        if not self.tokens[i].text.startswith('"') or before.text not in ("(", ",", "=", "{", "return"):
            return False  # of a declaration, or the continuation of another
        k = self._opening(i)
        return self.tokens[k].text != "(" or self.tokens[k - 1].text not in ("static_assert", "host_name", "deprecated")

    def _everywhere(self) -> None:
        """What is the same in every place: literals, attributes, qualified methods, refused words."""
        tokens = self.tokens
        bodies = self._function_bodies()

        depth_end: list[int] = []
        methods: set[tuple[int, str]] = set()
        self._methods()
        for i, token in enumerate(tokens):
            while depth_end and i >= depth_end[-1]:
                depth_end.pop()
            if i in bodies:
                depth_end.append(self.match[i])
            text, following = token.text, tokens[i + 1].text if i + 1 < len(tokens) else ""
            if literal := self._literal(i):
                self._edit(i, i + 1, literal)
            elif text == "[[":
                self._edit(i, self.match[i] + 1, "")
            elif text in _REFUSED_WORDS and tokens[i - 1].text != "::" and tokens[i - 1].text != ".":
                if not (text == "delete" and tokens[i - 1].text == "="):
                    raise self.error(token, f"{_REFUSED_WORDS[text]} is not supported in Metal")
            elif text == "long" and following == "long":
                raise self.error(token, "'long long' is not supported in Metal")
            elif text == "is_function_constant_defined" and following == "(":
                name = tokens[i + 2].text
                if name not in self.constants:
                    raise self.error(token, f"'{name}' is not a function constant")
                self._edit(i, self.match[i + 1] + 1, f"mpsk_defined_{name}")
            elif text in ADDRESS_SPACES and following in ("{", ";", ":", "const", "->") and self._follows_parameters(i):
                self._space_of_this(i, methods)
            elif text in ("*", "&", "&&") and i:
                self._check_pointer(i)
                if text == "&":
                    self._constant_reference(i)
            elif text == "static" and depth_end and not self._in_type(i, depth_end[-1]):
                end = self._declaration_end(i)
                if not any(t.text == "constant" for t in tokens[i:end]):
                    raise self.error(token, "a static variable in a function must be in the constant address space")
            elif text == "constant" and self._is_object_in_constant(i, bool(depth_end)):
                self._local_constant(i)
            elif text == "threadgroup" and depth_end and self._starts_statement(i):
                in_kernel = any(begin < i < end for begin, end in self.kernel_bodies)
                end = self._declaration_end(i)
                if not in_kernel and not any(t.text in ("*", "&", "(") for t in tokens[i:end]):
                    raise self.error(token, "threadgroup memory can only be declared in a kernel")
            elif text == "[" and self.version < 3.2 and self._is_lambda(i):
                raise self.error(token, "lambdas need Metal 3.2")
            elif text == "?":
                self._conditional(i)
            elif text == "decltype" and following == "(" and i not in self.instantiations:
                # To clang a variable's type has the space that the variable lies in.
                self._edit(i, i + 1, "::metal::remove_addrspace_t<decltype")
                self.edits.append((tokens[self.match[i + 1]].end, tokens[self.match[i + 1]].end, ">"))
            elif text == "template" and following == "<":
                self._function_parameters(i, self._skip_template_arguments(i + 1, len(tokens)))
            elif text == "using":
                self._function_parameters(i, self._declaration_end(i))
            elif text in ("+=", "-=") and self.has_conversions:
                self._addend(i)
            elif text == "coherent" and (following == "device" or tokens[i + 2].text in ("device", "system")):
                # Every access of the simulator's is coherent.
                if self.version < 3.2:
                    raise self.error(token, "coherent needs Metal 3.2")
                self._edit(i, self.match[i + 1] + 1 if following == "(" else i + 1, "")
            elif text in self.scalar_constants and tokens[i - 1].text in ("(", ",") and following in (")", ","):
                self._constant_argument(i)

    def _function_parameters(self, begin: int, end: int) -> None:
        """Among template parameters and in an alias, `R (*f)(...)` becomes `R (&f)(...)`: clang takes no function for a
        parameter that is a pointer."""
        tokens = self.tokens
        for j in range(begin, end - 3):
            if tokens[j].text == "(" and tokens[j + 1].text == "*":
                close = j + 3 if tokens[j + 2].kind == "name" else j + 2
                if tokens[close].text == ")" and tokens[close + 1].text == "(":
                    self._edit(j + 1, j + 2, "&")

    def _addend(self, i: int) -> None:
        """`pointer += object` at `i`, with an object that converts to an integer."""
        end = i + 1
        while self.tokens[end].text not in (";", ")", ",", "{"):
            end = self.match[end] + 1 if self.tokens[end].text in _OPEN else end + 1
        if self.tokens[end].text in (";", ")"):
            self._edit(i, i + 1, f"{self.tokens[i].text} mpsk::addend(")
            self.edits.append((self.tokens[end].start, self.tokens[end].start, ")"))

    def _takes_constants(self) -> set[str]:
        """Names of functions with a parameter that refers to an object in `constant`."""
        names: set[str] = set()
        for i, token in enumerate(self.tokens):
            if token.text == "&" and self.tokens[i - 1].kind == "name":
                k = i - 1
                while self.tokens[k].kind == "name" and self.tokens[k].text != "constant":
                    k -= 1
                if self.tokens[k].text == "constant":
                    names.add(self.tokens[self._opening(k) - 1].text)
        return names

    def _constant_argument(self, i: int) -> None:
        """A scalar constant for a reference: the compiler's constant has no place that it could refer to, so it gets one."""
        callee = self._opening(i) - 1
        if self.tokens[callee].text in self.takes_constants:
            self._edit(i, i + 1, f"mpsk::as_constant({self.tokens[i].text})")

    def _opening(self, i: int) -> int:
        """The index of the bracket that encloses token i, or -1."""
        k = i - 1
        while k >= 0 and self.tokens[k].text not in _OPEN:
            k = self.match[k] - 1 if self.tokens[k].text in _OPEN.values() else k - 1
        return k

    def _conditional(self, i: int) -> None:
        """`c ? a : b` at `i`: both operands become temporaries, for clang cannot join an object of class type that lies in an
        address space with one that does not. Not where they must stay what they are: in a statement of its own (they may
        be void), with an assignment inside, and null pointers."""
        tokens = self.tokens
        back = i - 1
        while back >= 0 and tokens[back].text not in (";", "{", "}", "(", "[", "return") and not self._assigns(back):
            back = self.match[back] - 1 if tokens[back].text in (")", "]") else back - 1
        if back < 0 or tokens[back].text in (";", "{", "}"):
            return
        begin, nested, at = i, 0, i + 1
        assigns = False
        while at < len(tokens) and tokens[at].text not in (")", "]", "}", ";", ","):
            text = tokens[at].text
            nested += (text == "?") - (text == ":")
            if nested < 0:
                if begin != i:
                    break
                self._temporary(i, assigns)
                begin, nested, assigns = at, 0, False
            assigns |= self._assigns(at)
            at = self.match[at] + 1 if text in _OPEN else at + 1
        if begin != i:
            self._temporary(begin, assigns)

    def _temporary(self, i: int, assigns: bool) -> None:
        """Makes a temporary of the operand after the `?` or `:` at `i`."""
        if not assigns and self.tokens[i + 1].kind != "number" and self.tokens[i + 1].text != "nullptr":
            self._edit(i, i + 1, f"{self.tokens[i].text} mpsk_value->*")

    def _assigns(self, i: int) -> bool:
        return self.tokens[i].text.endswith("=") and self.tokens[i].text not in ("==", "!=", "<=", ">=")

    def _constant_reference(self, i: int) -> None:
        """`const thread T&` also takes temporaries and copies of objects elsewhere; to clang these have no address space."""
        specifiers: dict[str, int] = {}
        k = i - 1
        while k >= 0 and (self.tokens[k].kind == "name" or self.tokens[k].text in ("::", ">")):
            if self.tokens[k].text == ">":
                depth = 0
                while k >= 0:
                    depth += {">": 1, "<": -1}.get(self.tokens[k].text, 0)
                    if depth == 0:
                        break
                    k -= 1
            specifiers.setdefault(self.tokens[k].text, k)
            k -= 1
        if "const" in specifiers and "thread" in specifiers:
            self._edit(specifiers["thread"], specifiers["thread"] + 1, "")

    def _methods(self) -> None:
        """A method that names no address space is one of objects in `thread`; and so are temporaries that it is called on."""
        tokens = self.tokens
        for i, token in enumerate(tokens):
            if token.text not in ("struct", "class", "union") or tokens[i - 1].text in ("enum", "<", ","):
                continue
            k = i + 1
            while k < len(tokens) and (tokens[k].kind == "name" or tokens[k].text in ("::", ":", ",", "<", "[[", "(")):
                if tokens[k].text == "<":
                    k = self._skip_template_arguments(k, len(tokens))
                else:
                    k = self.match[k] + 1 if tokens[k].text in _OPEN else k + 1
            if k >= len(tokens) or tokens[k].text != "{":
                continue
            name = tokens[i + 1].text
            self.struct_names[k] = name
            for start, stop, _ in self._statements(k + 1, self.match[k]):
                while tokens[start].text in ("public", "private", "protected") and tokens[start + 1].text == ":":
                    start += 2
                self._method(start, stop, name)
        for i, token in enumerate(tokens[:-3]):
            # T()(x) and T().f(): the temporary as an object.
            if token.kind != "name" or token.text not in self.type_names | self.template_parameters:
                continue
            if token.text in _BUILTIN_TYPES or tokens[i - 1].text in ("struct", "class", "::", "operator"):
                continue
            k = i + 1
            if tokens[k].text == "<":
                try:
                    k = self._skip_template_arguments(k, min(k + 200, len(tokens)))
                except CompileError:
                    continue
            if tokens[k].text in ("(", "{") and self.match[k] == k + 1 and tokens[k + 2].text in ("(", "."):
                self._edit(i, i + 1, f"(*mpsk::object({token.text}")
                self.edits.append((tokens[k + 1].end, tokens[k + 1].end, "))"))

    def _method(self, start: int, stop: int, struct: str) -> None:
        tokens = self.tokens
        i = start
        if tokens[i].text == "template":
            i = self._skip_template_arguments(i + 1, stop)
        words: set[str] = set()
        while i < stop and tokens[i].text != "(":
            text = tokens[i].text
            if text in ("{", "=", ";") and "operator" not in words:
                return
            words.add(text)
            if text in ("decltype", "alignas", "__attribute__") and tokens[i + 1].text == "(":
                i = self.match[i + 1] + 1
            elif text == "operator":
                i += 1
                while tokens[i].text != "(" or tokens[i + 1].text == ")" and tokens[i + 2].text == "(":
                    i = i + 2 if tokens[i].text == "(" else i + 1
            elif text == "<":
                i = self._skip_template_arguments(i, stop)
            elif text == "[[":
                i = self.match[i] + 1
            else:
                i += 1
        if i >= stop or words & {"static", "friend", "using", "typedef", "static_assert", "struct", "union", "enum", "~"}:
            return
        if tokens[i - 1].text == struct and "operator" not in words:
            return  # a constructor
        i = self.match[i] + 1
        while tokens[i].text == "const":
            i += 1
        if tokens[i].text in ("{", ";", "->", "="):
            self.edits.append((tokens[i - 1].end, tokens[i - 1].end, " __private "))

    def _follows_parameters(self, i: int) -> bool:
        k = i - 1
        while self.tokens[k].text == "const" or self.tokens[k].text in ADDRESS_SPACES:
            k -= 1
        return self.tokens[k].text == ")" and k != i

    def _space_of_this(self, i: int, methods: set[tuple[int, str]]) -> None:
        """The address space of a method's `this`. Clang takes only its own names for it: `device` and `constant` become
        one, and a constructor, which has none, serves objects in all of them. Of methods that are then the same, one stays."""
        tokens = self.tokens
        start = i - 1
        while tokens[start - 1].text not in (";", "{", "}", ":"):
            start = self.match[start - 1] if tokens[start - 1].text in _OPEN.values() else start - 1
        enclosing = start - 1
        while enclosing > 0 and tokens[enclosing].text != "{":
            enclosing = (self.match[enclosing] if tokens[enclosing].text in _OPEN.values() else enclosing) - 1
        k = i - 1
        while tokens[k].text != ")":
            k -= 1
        constructor = tokens[self.match[k] - 1].text == self.struct_names.get(enclosing)
        space = "" if constructor else {"thread": "__private", "threadgroup": "__local"}.get(tokens[i].text, "__global")
        method = (enclosing, f"{self._text(start, i)} {space}")
        if method in methods:
            end = i
            while tokens[end].text not in ("{", ";"):
                end = self.match[end] + 1 if tokens[end].text in _OPEN else end + 1
            self._edit(start, (self.match[end] if tokens[end].text == "{" else end) + 1, "")
        else:
            methods.add(method)
            self._edit(i, i + 1, space)

    def _function_bodies(self) -> set[int]:
        """Indices of `{` that open the body of a function."""
        found: set[int] = set()
        for i, token in enumerate(self.tokens):
            if token.text != "{" or i == 0:
                continue
            k = i - 1
            while k > 0 and (self.tokens[k].text in ADDRESS_SPACES or self.tokens[k].text in ("const", "noexcept")):
                k -= 1
            if self.tokens[k].text == ")" and self.tokens[self.match[k] - 1].text not in (
                "if",
                "for",
                "while",
                "switch",
                "alignas",
                "constexpr",
            ):
                found.add(i)
        return found

    def _in_type(self, i: int, function_end: int) -> bool:
        """Whether token i is directly in a struct that is declared inside a function."""
        k = i - 1
        while k > 0:
            text = self.tokens[k].text
            if text in _OPEN.values():
                k = self.match[k] - 1
                continue
            if text == "{":
                head = k - 1
                while head > 0 and self.tokens[head].text not in (";", "{", "}", ")"):
                    head -= 1
                return any(t.text in ("struct", "class", "union") for t in self.tokens[head:k])
            k -= 1
        return False

    def _is_object_in_constant(self, i: int, in_function: bool) -> bool:
        """Whether `constant` at i declares an object (not a pointer) in a struct or function."""
        k = i
        while k > 0 and (self.tokens[k - 1].kind == "name" or self.tokens[k - 1].text == "::"):
            k -= 1
        if self.tokens[k - 1].text not in (";", "{", "}", ":", ")", ">"):
            return False
        if not any(t.text in ("static", "constexpr") for t in self.tokens[k : i + 3]):
            return False
        for t in self.tokens[i:]:
            if t.text in ("*", "&", "("):
                return False
            if t.text in ("=", ";", "{"):
                return True
        return False

    def _local_constant(self, i: int) -> None:
        # At program scope _constant() replaced the whole declaration; an edit inside another is dropped in result().
        self._edit(i, i + 1, "const" if not any(t.text == "constexpr" for t in self.tokens[i - 3 : i + 3]) else "")

    def _is_lambda(self, i: int) -> bool:
        before, after = self.tokens[i - 1], self.tokens[self.match[i] + 1]
        if before.text == "operator" or before.kind in ("number", "string"):
            return False
        starts = before.text in ("=", "(", ",", "{", ";", "}", "return", "&&", "||", "?", ":")
        return starts and after.text in ("(", "{")

    def _check_pointer(self, i: int) -> None:
        """Every pointer and reference needs an address space."""
        tokens = self.tokens
        k = i - 1
        if tokens[k].text == "const":
            k -= 1
        if tokens[k].text == ">":
            depth = 0
            while k >= 0:
                depth += {">": 1, "<": -1}.get(tokens[k].text, 0)
                k -= 1
                if depth == 0 or tokens[k].text in (";", "{", "}"):
                    break
            if depth or tokens[k].text not in self.type_names | {"vec", "packed_vec", "matrix", "simdgroup_matrix"}:
                return
        elif tokens[k].text not in self.type_names:
            return
        if tokens[k].text in self.template_parameters:
            return
        if tokens[k - 1].text in ("operator", "."):
            return
        # Back over the other specifiers of the declaration.
        while k >= 0 and (tokens[k].kind == "name" or tokens[k].text in ("::", ">", "<", "]]")):
            if tokens[k].text in ADDRESS_SPACES or tokens[k].text.startswith("coherent"):
                return
            if tokens[k].text in ("return", "sizeof", "case", "template"):
                return
            k = self.match[k] - 1 if tokens[k].text == "]]" else k - 1
        if k >= 0 and tokens[k].text == ")" and tokens[self.match[k] - 1].text == "coherent":
            return
        following = tokens[i + 1]
        if following.kind == "number" or following.text == "(" and tokens[i].text != "&":
            return
        what = "pointer" if tokens[i].text == "*" else "reference"
        raise self.error(tokens[i], f"{what} type must have an address space (device, constant, threadgroup or thread)")

    # --- the table of kernels -----------------------------------------------------------------------------------------

    def _closure(self, names: set[str]) -> set[str]:
        """All program-scope names that `names` lead to."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            todo.extend(self.uses.get(name, ()))
            todo.extend(self.derived.get(name, ()))
        return seen

    def _table(self) -> str:
        """Code that describes constants and kernels to the device."""
        lines = ["\nnamespace {"]
        for constant in self.constants.values():
            lines.append(
                f'__attribute__((section("mpsk_constants"), used)) const mpsk_constant mpsk_constant_{constant.name} = '
                f'{{"{constant.name}", "{constant.type}", {constant.index}, sizeof({constant.name}), '
                f"{str(self._only_guarded(constant.name)).lower()}, "
                f"(void*)&{constant.name}, &mpsk_defined_{constant.name}}};"
            )
        for name in self.derived:
            lines.append(
                f'__attribute__((section("mpsk_derived"), used)) const mpsk_derive mpsk_derived_{name} = '
                f"&mpsk_derive_{name};"
            )
        number = 0
        for kernel in (k for overloads in self.kernels.values() for k in overloads):
            names = {t.text for t in self.tokens[kernel.body[0] : kernel.body[1]] if t.kind == "name"}
            reached = self._closure(names | {"operator"})
            for parameter in kernel.parameters:
                for attribute in parameter.attributes:
                    if attribute.name == "function_constant":
                        reached |= self._closure({attribute.argument})
            constants = [name for name in self.constants if name in reached]
            for instance in kernel.instances:
                lines += self._entry(number, kernel, instance, constants)
                number += 1
        lines.append("}")
        return "\n".join(lines) + "\n"

    def _only_guarded(self, name: str) -> bool:
        """Whether the source asks if the constant is defined, which makes a value optional."""
        tokens = self.tokens
        return any(
            t.text == "is_function_constant_defined" and tokens[i + 2].text == name for i, t in enumerate(tokens[:-2])
        )

    def _entry(self, number: int, kernel: Kernel, instance: Instance, constants: list[str]) -> list[str]:
        """One row of the table: the argument types a0, a1, ..., what is checked of them, and the function that binds them."""
        count, token, expression = len(kernel.parameters), instance.token, instance.expression
        calls: list[str] = []
        explicit: list[str] = []
        positions: list[str] = []
        lines = [f"namespace mpsk_entry_{number} {{", f'#line {token.line} "{token.file}"']
        if instance.parameters:
            # They say which function is meant, where its template arguments do not.
            lines.append(f"void prototype{instance.parameters}; using type = decltype(prototype);")
            function = f"static_cast<type&>({expression})"
        else:
            lines.append(f"using type = decltype({expression});")
            function = expression
        for i, parameter in enumerate(kernel.parameters):
            by_name = {a.name: a.argument for a in parameter.attributes}
            position = next((n for n in by_name if n in _POSITIONS), None)
            index = next((n for n in by_name if n in _INDICES), None)
            for name in by_name.keys() - _POSITIONS.keys() - _INDICES.keys() - _ARGUMENT_ATTRIBUTES:
                raise self.error(parameter.token, f"attribute '{name}' is not supported on a kernel argument")
            slot = by_name.get("threadgroup" if parameter.threadgroup else "buffer")
            explicit.append(f"int({slot})" if slot else "-1")
            lines += [
                f'#line {parameter.token.line} "{parameter.token.file}"',
                f"using t{i} = mpsk::signature<type>::argument<{i}>; using a{i} = mpsk::argument_traits<t{i}>;",
            ]
            if position:
                calls.append(f"mpsk::position_builtin<t{i}>({_POSITIONS[position]})")
                positions.append(f"mpsk::builtin_traits<t{i}>::components")
            elif index:
                calls.append(f"mpsk::index_builtin<t{i}>({_INDICES[index]})")
            else:
                calls.append(f"a{i}::bind(slots[{i}])")
                lines.append(
                    f'static_assert(a{i}::kind != mpsk_argument_builtin, "kernel argument \'{parameter.name}\' must be a '
                    f'pointer or reference in device, constant or threadgroup, or have a position or index attribute");'
                )
        slots = ", ".join(f"mpsk::slot<a{i}::kind, {index}>()" for i, index in enumerate(explicit))
        # One line, so that a refusal names the line of the instantiation.
        lines += [
            f'#line {token.line} "{token.file}"',
            f"constexpr auto numbers = mpsk::number_arguments({slots}); "
            f"static_assert(numbers.valid, \"kernel '{kernel.name}' has two arguments of one index, or an index that is not in "
            f'0..30"); static_assert(mpsk::same_components<{", ".join(positions)}>(), "the position and size attributes of '
            f"kernel '{kernel.name}' must all have the same number of components\");",
            f"void run(const mpsk_thread* t, void* const* slots) {{ {function}({', '.join(calls)}); }}",
            "const mpsk_argument arguments[] = {",
        ]
        for i, parameter in enumerate(kernel.parameters):
            enabled = next((a.argument for a in parameter.attributes if a.name == "function_constant"), None)
            type_text = parameter.type.replace('"', "'")
            lines.append(
                f'{{"{parameter.name}", "{type_text}", a{i}::kind, numbers.index[{i}], a{i}::size, a{i}::align, '
                f"a{i}::is_const, a{i}::is_reference, {'&' + enabled if enabled else '0'}}},"
            )
        uses = "".join(f"&mpsk_constant_{name}, " for name in constants)
        max_threads = kernel.max_threads + expression[len(expression.split("<")[0]) :] if kernel.max_threads else "0"
        lines += [
            "{}};",
            f"const mpsk_constant* const constants[] = {{{uses}0}};",
            '__attribute__((section("mpsk_kernels"), used)) const mpsk_kernel row = {',
            f'{instance.host_name}, "{kernel.token.file}", {kernel.token.line}, {count}, arguments, {max_threads}, '
            f"{len(constants)}, constants, &run}};",
            "}",
        ]
        return lines

    def result(self) -> str:
        self._program_scope(0, len(self.tokens), "")
        self._everywhere()
        pieces: list[str] = []
        position = 0
        # An edit that lies inside an earlier, larger one is part of what that one replaced.  Insertions come first.
        for start, end, replacement in sorted(self.edits, key=lambda e: (e[0], e[1] > e[0], -e[1])):
            if start < position:
                continue
            pieces += [self.text[position:start], replacement]
            position = end
        pieces.append(self.text[position:])
        return "".join(pieces) + self._table()


def rewrite(text: str, std: str = "metal3.1") -> str:
    """Rewrites preprocessed Metal source for clang. Raises CompileError for what Metal refuses."""
    return Rewriter(_UNROLL.sub(r"\1", text), std).result()
