"""Turns preprocessed Metal source into C++ for OpenCL that clang compiles for the host.

Clang's C++ for OpenCL has Metal's address spaces, but not all of its grammar. What differs is rewritten on tokens, in
place, so that every line keeps its number:

- `[[...]]` attributes are read and removed; a table of kernels and their arguments is appended;
- `template [[host_name("x")]] kernel ...` becomes a plain explicit instantiation;
- function constants become variables that the device sets before a launch;
- program-scope `constant` objects become objects that clang can place, and references to them;
- `threadgroup` declarations in kernels become references into the threadgroup's memory;
- literals of half, bfloat and text become conversions;
- the address spaces of methods become those that clang has for them.

What Metal refuses and this clang would take is refused here.
"""

from __future__ import annotations

import re

from .convergence import Convergence
from .errors import CompileError, error_at
from .lexer import Token
from .source import BUILTIN_TYPES, CLOSE, OPEN, TYPE_KEYWORDS, Attribute, Source
from .table import Constant, Instance, Kernel, Parameter, table

ADDRESS_SPACES = {"device", "constant", "threadgroup", "thread"}
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
# Preprocessing leaves the arguments of a pragma alone, so that macros in them mean nothing to the compiler.
_UNROLL = re.compile(r"(?m)^([ \t]*#[ \t]*pragma[ \t]+(?:unroll|GCC[ \t]+unroll)\b)[^\n]*[A-Za-z_][^\n]*$")
_CONVERSION = re.compile(r"\boperator\s+(?!new|delete)\w+\s*\(")


# What several sources include is each one's own, as its function constants are: linking may not take one for another.
_OWN = "#pragma clang attribute push(__attribute__((internal_linkage)), apply_to = any(function, record))\n"


class Rewriter(Source):
    """One translation unit. `result()` gives the rewritten text."""

    def __init__(self, text: str, std: str = "metal3.1"):
        super().__init__(text)
        self.version = float(std.removeprefix("metal"))
        self.kernels: dict[str, list[Kernel]] = {}  # those of one name
        self.kernel_bodies: list[tuple[int, int]] = []  # indices of their { and }
        self.threadgroup_names: dict[int, list[str]] = {}  # { of a kernel -> what it declares
        self.constants: dict[str, Constant] = {}
        self.derived: dict[str, set[str]] = {}  # derived constant -> names in its initialiser
        self.scalar_constants: set[str] = set()  # program-scope constants that are no objects in memory
        self.instantiations: set[int] = set()  # indices of tokens in explicit instantiations
        self.struct_names: dict[int, str] = {}  # by the index of the `{` of its members
        self.methods: set[tuple[int, str]] = set()  # struct and head of the methods with an address space
        self.uses: dict[str, set[str]] = {}  # program-scope name -> identifiers in its definition
        self.takes_constants = self._takes_constants()
        self.has_conversions = bool(_CONVERSION.search(text))

    def result(self) -> str:
        self._program_scope(0, len(self.tokens), "")
        self._methods()
        self._temporary_objects()
        self._everywhere()
        Convergence(self, self._function_bodies(), {begin for begin, _ in self.kernel_bodies}).mark()
        kernels = [kernel for overloads in self.kernels.values() for kernel in overloads]
        for kernel in kernels:
            reached = self._reached_by(kernel)
            kernel.constants = [name for name in self.constants if name in reached]
            kernel.threadgroup_names = self.threadgroup_names[kernel.body[0]]
        return (
            _OWN
            + self.edited()
            + "\n#pragma clang attribute pop\n"
            + table(list(self.constants.values()), list(self.derived), kernels)
        )

    def _reached_by(self, kernel: Kernel) -> set[str]:
        """All program-scope names that a kernel's body and arguments lead to, operators always."""
        begin, end = kernel.body
        todo = ["operator", *(t.text for t in self.tokens[begin:end] if t.kind == "name")]
        todo += [a.argument for p in kernel.parameters for a in p.attributes if a.name == "function_constant"]
        seen: set[str] = set()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self.uses.get(name, set()) | self.derived.get(name, set())
        return seen

    # --- program scope ------------------------------------------------------------------------------------------------

    def _program_scope(self, begin: int, end: int, namespace: str) -> None:
        for start, stop, body in self.statements(begin, end):
            head_end = stop if body is None else body
            head = self.outside_templates(start, head_end)
            words = [t.text for t in head]
            if not words or words == [";"]:
                continue
            if body is not None and "namespace" in words[:2]:
                name = "".join(words[words.index("namespace") + 1 :])
                self._program_scope(body + 1, self.match[body], f"{namespace}{name}::" if name else namespace)
                continue
            if body is not None and words[0] == "extern" and len(head) == 2:
                self._program_scope(body + 1, self.match[body], namespace)
                continue
            attributes = self.attributes(start, head_end)
            is_kernel = "kernel" in words or any(a.name == "kernel" for a in attributes)
            has_host_name = any(a.name == "host_name" for a in attributes)
            if words[0] == "template" and body is None and (is_kernel or has_host_name):
                self._instantiation(start, stop, attributes, namespace)
            elif is_kernel:
                self._kernel(start, stop, body, attributes, namespace)
            elif body is None and self._declares_constant(start, stop):
                self._constant(start, stop, attributes)
            elif body is None and self._is_variable(words):
                raise error_at(self.tokens[start], "a program-scope variable must be in the constant address space")
            identifiers = {t.text for t in self.tokens[start:stop] if t.kind == "name"}
            for name in self._defined_names(head):
                self.uses.setdefault(name, set()).update(identifiers)

    @staticmethod
    def _is_variable(words: list[str]) -> bool:
        if words[0] in ADDRESS_SPACES:
            return words[0] != "constant" and "(" not in words
        others = {"using", "typedef", "template", "friend", "static_assert", "operator", "extern"}
        if set(words) & (TYPE_KEYWORDS | others):
            return False
        cut = words.index("=") if "=" in words else len(words)
        return not words[0].startswith("_Pragma") and "(" not in words[:cut] and len(words) >= 3

    @staticmethod
    def _defined_names(head: list[Token]) -> list[str]:
        """Names that a declaration introduces: of a type all names in its head, of anything else the last; `operator`
        stands for all operators."""
        names: list[str] = []
        for token in head:
            if token.text in ("(", "[", "{", "=", ";"):
                break
            if token.kind == "name":
                names.append(token.text)
        if "operator" in names:
            return ["operator"]
        return [name for name in names if name not in TYPE_KEYWORDS] if TYPE_KEYWORDS & set(names) else names[-1:]

    # --- constants ----------------------------------------------------------------------------------------------------

    def _declares_constant(self, start: int, stop: int) -> bool:
        """Whether the declaration is of an object in the constant address space, not of a function."""
        end = self.end_of_declarator(start, stop)
        words = {t.text for t in self.outside_templates(start, end)}
        is_function = end < stop and self.tokens[end].text == "(" and words & {"*", "&"}
        return "constant" in words and not is_function and not words & {"using", "typedef", "operator"}

    def _constant(self, start: int, stop: int, attributes: list[Attribute]) -> None:
        """A program-scope variable in the constant address space."""
        tokens = self.tokens
        end = self.end_of_declarator(start, stop)
        has_value = tokens[end].text != ";"
        if tokens[start].text == "template" and has_value:
            # Instances of a variable template are constants of the compiler's, which need no place in memory.
            self.drop_words(start, end, {"constant"})
            return
        at = end - 1
        while tokens[at].text in CLOSE:
            at = self.before(at)
        name = tokens[at]
        index = next((a.argument for a in attributes if a.name == "function_constant"), None)
        if name.kind != "name":
            raise error_at(tokens[start], "cannot read this declaration in the constant address space")
        if tokens[at - 1].text == "::":
            self._static_member(start, stop, has_value)
        elif index is not None:
            if has_value:
                raise error_at(name, f"function constant '{name.text}' cannot have an initialiser")
            self._function_constant(start, stop, at, index)
        elif has_value:
            self._constant_object(start, stop, at, end)
        else:
            raise error_at(name, f"'{name.text}' in the constant address space needs an initialiser")

    def _static_member(self, start: int, stop: int, has_value: bool) -> None:
        """The definition of a static member, outside its class. One without a value repeats what the class has said."""
        if has_value:
            self.drop_words(start, stop, {"constant"})
        else:
            self.edit(start, stop, "")

    def _type_of_constant(self, start: int, name: int) -> str:
        dropped = {"constant", "const", "static", "constexpr", "inline"}
        return " ".join(part for part in self.text_of(start, name).split() if part not in dropped)

    def _function_constant(self, start: int, stop: int, at: int, index: str) -> None:
        name, type_text = self.tokens[at].text, self._type_of_constant(start, at)
        optional = re.search(rf"\bis_function_constant_defined\s*\(\s*{name}\s*\)", self.text) is not None
        self.constants[name] = Constant(name, type_text, index, optional)
        self.edit(start, stop, f"static {type_text} {name}; static bool mpsk_defined_{name};")

    def _constant_object(self, start: int, stop: int, at: int, initialiser: int) -> None:
        """An object with a value: one that depends on function constants is computed by the device, a scalar is a
        constant of the compiler's, others are objects that clang can place, with references to them."""
        name, type_text = self.tokens[at].text, self._type_of_constant(start, at)
        extents, value = self.text_of(at + 1, initialiser), self.text_of(initialiser, stop - 1)
        used = {t.text for t in self.tokens[initialiser:stop] if t.kind == "name"}
        is_constexpr = any(t.text == "constexpr" for t in self.tokens[start:at])
        is_integral = set(type_text.split()) <= BUILTIN_TYPES - {"half", "bfloat", "float", "void"}
        if used & (self.constants.keys() | self.derived.keys()):
            self.derived[name] = used
            value = re.sub(r"is_function_constant_defined \( (\w+) \)", r"mpsk_defined_\1", value.removeprefix("= "))
            code = f"static {type_text} {name}; static void mpsk_derive_{name}() {{ {name} = {value}; }}"
        elif not extents and (is_constexpr or is_integral):
            self.scalar_constants.add(name)
            code = f"static constexpr {type_text} {name} {value};"
        else:
            code = f"static const {type_text} mpsk_object_{name} {extents} {value}; "
            code += f"static auto& {name} = mpsk::as_constant(mpsk_object_{name});"
        self.edit(start, stop, code)

    # --- kernels ------------------------------------------------------------------------------------------------------

    def _kernel(self, start: int, stop: int, body: int | None, attributes: list[Attribute], namespace: str) -> None:
        """A kernel, a kernel template or a specialisation of one."""
        tokens = self.tokens
        is_template = tokens[start].text == "template"
        head = self.skip_template_arguments(start + 1, stop) if is_template else start
        open_paren = self._parameter_list(head, stop)
        if open_paren is None:
            raise error_at(tokens[start], "'kernel' needs a function")
        at = open_paren - 1
        if tokens[at].text == ">":  # a specialisation: k<float>
            at = self.template_arguments_start(at) - 1
        name = tokens[at]
        if {t.text for t in self.outside_templates(head, at)} - {"kernel", "inline", "static"} != {"void"}:
            raise error_at(name, f"kernel '{name.text}' must return void")
        self.drop_words(head, at, {"kernel", "static"})
        # Into its entry function, by which the device recognises the kernel's threadgroup memory.
        self.insert(at, f"{'inline' if is_template else 'static'} __attribute__((always_inline)) ")
        if body is None:
            return  # a declaration
        self.kernel_bodies.append((body, self.match[body]))
        self._threadgroup_declarations(body)
        host_names = [a.argument for a in attributes if a.name == "host_name"]
        if at + 1 < open_paren:
            expression = namespace + self.text_of(at, open_paren)
            instances = [Instance(host_name, expression, name) for host_name in host_names]
            self._kernel_of(at, open_paren, namespace).instances += instances
            return
        qualified = namespace + name.text
        overloads = self.kernels.setdefault(qualified, [])
        if overloads and not (is_template and overloads[0].template_arguments):
            raise error_at(name, f"kernel '{qualified}' cannot be overloaded")
        counts = self._template_argument_counts(start + 1, head) if is_template else None
        parameters = self._parameters(open_paren + 1, self.match[open_paren])
        kernel = Kernel(qualified, parameters, name, (body, self.match[body]), counts)
        overloads.append(kernel)
        if not is_template:
            kernel.instances.append(Instance(host_names[0] if host_names else f'"{qualified}"', qualified, name))
        for attribute in attributes:
            if attribute.name == "max_total_threads_per_threadgroup":
                # A number of its own, for it may depend on the template's parameters.
                number = f"mpsk_max_threads_{name.text}_{len(overloads)}"
                kernel.max_threads = namespace + number
                template = self.text_of(start, head)
                self.insert(start, f"{template} constexpr unsigned {number} = {attribute.argument}; ")

    def _parameter_list(self, i: int, stop: int) -> int | None:
        """The index of the `(` of the parameters of the function that the declaration at i names."""
        while i < stop and self.tokens[i].text not in ("{", ";", "="):
            if self.tokens[i].text == "(":
                return i
            i = self.after(i + 1 if self.tokens[i].text in ("__attribute__", "alignas", "decltype") else i)
        return None

    def _template_argument_counts(self, begin: int, end: int) -> tuple[int, int]:
        """How many arguments the template with the parameters `<...>` at [begin, end) takes, at least and at most."""
        parameters = [{t.text for t in self.tokens[i:j]} for i, j in self.split(begin + 1, end - 1)]
        least = sum(not words & {"=", "..."} for words in parameters)
        return least, 1000 if any("..." in words for words in parameters) else len(parameters)

    def _kernel_of(self, begin: int, end: int, namespace: str) -> Kernel:
        """The kernel template that `name<...>`, or `name`, at [begin, end) means."""
        arguments = next((i for i in range(begin, end) if self.tokens[i].text == "<"), end)
        name = self.text_of(begin, arguments).replace(" ", "")
        overloads = self.kernels.get(namespace + name) or self.kernels.get(name, [])
        if arguments < end:
            count = sum(1 for _ in self.split(arguments + 1, end - 1))
            overloads = [kernel for kernel in overloads if kernel.accepts(count)]
        if not overloads:
            raise error_at(self.tokens[begin], f"'{name}' is not a kernel template with these arguments")
        if len(overloads) > 1:
            raise error_at(self.tokens[begin], f"'{name}' may be any of {len(overloads)} kernel templates")
        return overloads[0]

    def _parameters(self, begin: int, end: int) -> list[Parameter]:
        parameters: list[Parameter] = []
        for start, stop in self.split(begin, end):
            words = self.outside_templates(start, stop)
            if [w.text for w in words] == ["void"]:
                continue
            names = [k for k, t in enumerate(words) if t.kind == "name"]
            if not names:
                raise error_at(self.tokens[start], "cannot read this kernel argument")
            last = names[-1]
            type_text = " ".join(t.text for t in words[:last])
            is_threadgroup = any(w.text == "threadgroup" for w in words[:last])
            attributes = self.attributes(start, stop)
            parameters.append(Parameter(words[last].text, type_text, attributes, words[0], is_threadgroup))
        return parameters

    def _instantiation(self, start: int, stop: int, attributes: list[Attribute], namespace: str) -> None:
        """template [[host_name("x")]] kernel void k<float>(...);
        or  ... kernel void k(...);  or  ... kernel decltype(k<float>) k<float>;"""
        tokens = self.tokens
        self.instantiations.update(range(start, stop))
        open_paren = self._parameter_list(start, stop)
        end = stop - 1 if open_paren is None else open_paren
        has_arguments = tokens[end - 1].text == ">"
        begin = self._start_of_arguments(start, end) - 1 if has_arguments else end - 1
        while tokens[begin - 1].text == "::":
            begin -= 2
        for k in range(start, stop):
            if tokens[k].text == "kernel" and tokens[k - 1].text not in ("[[", ","):
                self.edit(k, k + 1, "")
        # A declaration checks as much, and emits nothing beside the entry function.
        self.insert(start, "extern ")
        kernel = self._kernel_of(begin, end, namespace)
        if kernel.max_threads and not has_arguments:
            raise error_at(tokens[begin], f"the instantiation of '{kernel.name}' must name its template arguments")
        expression = self.text_of(begin, end)
        if kernel.name != expression.split("<")[0].replace(" ", ""):
            expression = namespace + expression
        parameters = "" if open_paren is None else self.text_of(open_paren, self.match[open_paren] + 1)
        host_names = [a.argument for a in attributes if a.name == "host_name"]
        kernel.instances += [Instance(name, expression, tokens[begin], parameters) for name in host_names]

    def _start_of_arguments(self, start: int, end: int) -> int:
        """The index of the `<` of the template arguments that end before `end`, in the declaration at `start`."""
        for i in range(end - 1, start, -1):
            if self.tokens[i].text == "<" and self.tokens[i - 1].kind == "name":
                if self.skip_template_arguments(i, len(self.tokens)) == end:
                    return i
        raise error_at(self.tokens[start], "cannot read this kernel instantiation")

    # --- threadgroup memory -------------------------------------------------------------------------------------------

    def _threadgroup_declarations(self, body: int) -> None:
        """Memory that a kernel declares for its threadgroup becomes references, each with a number."""
        names = self.threadgroup_names[body] = []
        for i in range(body + 1, self.match[body]):
            if self.tokens[i].text == "threadgroup" and self._starts_statement(i) and not self._declares_pointer(i):
                self._threadgroup_declaration(i, names)

    def _threadgroup_declaration(self, i: int, names: list[str]) -> None:
        """The declaration at i, perhaps behind an alignas. `names` are the declared so far, by their numbers."""
        tokens = self.tokens
        first, begin, align = i, i + 1, "0"
        if self._is_alignas(i - 1):
            first = self.match[i - 1] - 1
            align = self.text_of(first + 2, i - 1)
        if tokens[begin].text == "alignas":
            align = self.text_of(begin + 2, self.match[begin + 1])
            begin = self.after(begin + 1)
        end = self.end_of_statement(begin)
        code, type_text = "", ""
        for start, stop in self.split(begin, end):
            # Apple's compiler takes an initialiser, and gives the memory no value.
            stop = min(self.end_of_declarator(start, stop), stop)
            at = stop - 1
            while tokens[at].text == "]":
                at = self.before(at)
            type_text = type_text or self.text_of(start, at)
            memory = f"mpsk::threadgroup_memory<{len(names)}, {align}, {type_text} {self.text_of(at + 1, stop)}>()"
            code += f"threadgroup auto& {tokens[at].text} = {memory}; "
            names.append(tokens[at].text)
        self.edit(first, end + 1, code)

    def _declares_pointer(self, i: int) -> bool:
        """Whether the declaration with token i is of a pointer or reference."""
        end = self.end_of_declarator(i, len(self.tokens))
        while i < end and self.tokens[i].text not in ("*", "&"):
            i = self.skip_template_arguments(i, end) if self.tokens[i].text == "<" else self.after(i)
        return i < end

    def _is_alignas(self, i: int) -> bool:
        return self.tokens[i].text == ")" and self.tokens[self.match[i] - 1].text == "alignas"

    def _starts_statement(self, i: int) -> bool:
        before = self.match[i - 1] - 2 if self._is_alignas(i - 1) else i - 1
        return self.tokens[before].text in (";", "{", "}", ":")

    # --- everywhere ---------------------------------------------------------------------------------------------------

    def _everywhere(self) -> None:
        """What is refused, and what is rewritten, in every place."""
        rewrites = {
            "[[": lambda i: self.edit(i, self.match[i] + 1, ""),
            "?": self._conditional,
            "&": self._constant_reference,
            "+=": self._addend,
            "-=": self._addend,
            "decltype": self._decltype,
            "template": lambda i: self._function_parameters(i, self._end_of_template(i)),
            "using": lambda i: self._function_parameters(i, self.end_of_statement(i)),
            "coherent": self._coherent,
            "is_function_constant_defined": self._is_defined,
        }
        bodies = self._function_bodies()
        ends: list[int] = []  # of the functions around token i
        for i, token in enumerate(self.tokens):
            while ends and i >= ends[-1]:
                ends.pop()
            if i in bodies:
                ends.append(self.match[i])
            self._refuse(i, bool(ends))
            if literal := self.literal(i):
                self.edit(i, i + 1, literal)
            elif token.text in ADDRESS_SPACES:
                self._address_space(i)
            elif token.text in rewrites:
                rewrites[token.text](i)
            elif token.text in self.scalar_constants:
                self._constant_argument(i)

    def _refuse(self, i: int, in_function: bool) -> None:
        """What Metal does not take at token i."""
        token, before = self.tokens[i], self.tokens[i - 1].text
        text, following = token.text, self.tokens[i + 1].text if i + 1 < len(self.tokens) else ""
        if text in ("*", "&", "&&"):
            self._check_pointer(i)
        elif text in _REFUSED_WORDS and before not in ("::", ".") and not (text == "delete" and before == "="):
            raise error_at(token, f"Metal has no {_REFUSED_WORDS[text]}")
        elif text == "long" and following == "long":
            raise error_at(token, "Metal has no 'long long'")
        elif in_function and following == "(" and text in self.kernels and before in (";", "{", "}", ")", ","):
            raise error_at(token, f"kernel '{text}' cannot be called")
        elif token.kind == "number" and text[-1] in "lL" and "." in text:
            raise error_at(token, "Metal has no long double")
        elif text == "[" and self.version < 3.2 and self._is_lambda(i):
            raise error_at(token, "lambdas need Metal 3.2")
        elif text == "static" and in_function and not self._in_type(i):
            if not any(t.text == "constant" for t in self.tokens[i : self.end_of_statement(i)]):
                raise error_at(token, "a static variable in a function must be in the constant address space")
        elif text == "threadgroup" and in_function and self._starts_statement(i):
            in_kernel = any(begin < i < end for begin, end in self.kernel_bodies)
            if not in_kernel and not any(t.text in ("*", "&", "(") for t in self.tokens[i : self.end_of_statement(i)]):
                raise error_at(token, "threadgroup memory can only be declared in a kernel")

    def _function_bodies(self) -> set[int]:
        """Indices of `{` that open the body of a function."""
        found: set[int] = set()
        for i, token in enumerate(self.tokens[1:], 1):
            k = i - 1
            while k > 0 and self.tokens[k].text in ADDRESS_SPACES | {"const", "noexcept"}:
                k -= 1
            if token.text == "{" and self.tokens[k].text == ")":
                if self.tokens[self.match[k] - 1].text not in ("if", "for", "while", "switch", "alignas", "constexpr"):
                    found.add(i)
        return found

    def _in_type(self, i: int) -> bool:
        """Whether token i is directly among the members of a type."""
        opening = self.opening(i)
        head = opening - 1
        while head > 0 and self.tokens[head].text not in (";", "{", "}", ")"):
            head -= 1
        return any(t.text in TYPE_KEYWORDS for t in self.tokens[max(head, 0) : max(opening, 0)])

    def _is_lambda(self, i: int) -> bool:
        before, after = self.tokens[i - 1], self.tokens[self.match[i] + 1]
        starts = before.text in ("=", "(", ",", "{", ";", "}", "return", "&&", "||", "?", ":")
        return starts and before.kind != "string" and after.text in ("(", "{")

    def _check_pointer(self, i: int) -> None:
        """Every pointer and reference needs an address space."""
        tokens = self.tokens
        k = i - 2 if tokens[i - 1].text == "const" else i - 1
        types = self.type_names
        if tokens[k].text == ">":
            k = self.template_arguments_start(k) - 1
            types = types | {"vec", "packed_vec", "matrix", "simdgroup_matrix"}
        if tokens[k].text not in types - self.template_types or tokens[k - 1].text in ("operator", "."):
            return
        # Back over the other specifiers of the declaration.
        while k >= 0 and (tokens[k].kind == "name" or tokens[k].text in ("::", ">", "<", "]]")):
            if tokens[k].text in ADDRESS_SPACES | {"coherent", "return", "sizeof", "case", "template"}:
                return
            k = self.match[k] - 1 if tokens[k].text == "]]" else k - 1
        if k >= 0 and tokens[k].text == ")" and tokens[self.match[k] - 1].text == "coherent":
            return
        following = tokens[i + 1]
        if following.kind == "number" or (following.text == "(" and tokens[i].text != "&"):
            return
        what = "pointer" if tokens[i].text == "*" else "reference"
        raise error_at(tokens[i], f"{what} type must have an address space (device, constant, threadgroup or thread)")

    def _is_defined(self, i: int) -> None:
        name = self.tokens[i + 2].text
        if name not in self.constants or self.tokens[i + 1].text != "(":
            raise error_at(self.tokens[i], f"'{name}' is not a function constant")
        self.edit(i, self.match[i + 1] + 1, f"mpsk_defined_{name}")

    def _coherent(self, i: int) -> None:
        """Every access of the simulator's is coherent."""
        end = self.after(i + 1) if self.tokens[i + 1].text == "(" else i + 1
        if self.tokens[end].text == "device" or self.tokens[end - 2].text in ("device", "system"):
            if self.version < 3.2:
                raise error_at(self.tokens[i], "coherent needs Metal 3.2")
            self.edit(i, end, "")

    def _decltype(self, i: int) -> None:
        """To clang a variable's type has the space that the variable lies in."""
        if i not in self.instantiations and self.tokens[i + 1].text == "(":
            self.edit(i, i + 1, "::metal::remove_addrspace_t<decltype")
            self.insert_after(self.match[i + 1], ">")

    def _end_of_template(self, i: int) -> int:
        """The index after the `<...>` of the `template` at i, or after it, where it has none."""
        return self.skip_template_arguments(i + 1, len(self.tokens)) if self.tokens[i + 1].text == "<" else i + 1

    def _function_parameters(self, begin: int, end: int) -> None:
        """Among template parameters and in an alias, `R (*f)(...)` becomes `R (&f)(...)`: clang takes no function for a
        parameter that is a pointer."""
        tokens = self.tokens
        for j in range(begin, end - 3):
            if tokens[j].text == "(" and tokens[j + 1].text == "*":
                close = j + 3 if tokens[j + 2].kind == "name" else j + 2
                if tokens[close].text == ")" and tokens[close + 1].text == "(":
                    self.edit(j + 1, j + 2, "&")

    def _addend(self, i: int) -> None:
        """`pointer += object` at i, with an object that converts to an integer: clang has no such operator for a
        pointer that lies in an address space."""
        end = i + 1
        while self.tokens[end].text not in (";", ",", "{", *CLOSE):
            end = self.after(end)
        if self.has_conversions and self.tokens[end].text in (";", ")"):
            self.edit(i, i + 1, f"{self.tokens[i].text} mpsk::addend(")
            self.insert(end, ")")

    def _takes_constants(self) -> set[str]:
        """Names of functions with a parameter that refers to an object in `constant`."""
        names: set[str] = set()
        for i, token in enumerate(self.tokens):
            if token.text == "&":
                k = i - 1
                while self.tokens[k].kind == "name" and self.tokens[k].text != "constant":
                    k -= 1
                if self.tokens[k].text == "constant":
                    names.add(self.tokens[self.opening(k) - 1].text)
        return names

    def _constant_argument(self, i: int) -> None:
        """A scalar constant for a reference: it is the compiler's, so it does not lie in `constant`."""
        is_argument = self.tokens[i - 1].text in ("(", ",") and self.tokens[i + 1].text in (")", ",")
        if is_argument and self.tokens[self.opening(i) - 1].text in self.takes_constants:
            self.edit(i, i + 1, f"mpsk::as_constant({self.tokens[i].text})")

    def _constant_reference(self, i: int) -> None:
        """`const thread T&` also takes temporaries and copies of objects elsewhere, which to clang lie in no space."""
        specifiers: dict[str, int] = {}
        k = i - 1
        while k >= 0 and (self.tokens[k].kind == "name" or self.tokens[k].text in ("::", ">")):
            if self.tokens[k].text == ">":
                k = self.template_arguments_start(k)
            specifiers.setdefault(self.tokens[k].text, k)
            k -= 1
        if "const" in specifiers and "thread" in specifiers:
            self.edit(specifiers["thread"], specifiers["thread"] + 1, "")

    # --- conditionals -------------------------------------------------------------------------------------------------

    def _conditional(self, i: int) -> None:
        """`c ? a : b` at i: both operands become temporaries, for clang cannot join an object of class type that lies
        in an address space with one that does not. Not where they must stay what they are: in a statement of its own
        (they may be void), with an assignment inside, and null pointers."""
        tokens = self.tokens
        back = i - 1
        while back >= 0 and tokens[back].text not in ("return", ";", "{", "}", *OPEN) and not self._assigns(back):
            back = self.before(back)
        if back < 0 or tokens[back].text in (";", "{", "}"):
            return
        operand, nested, assigns, at = i, 0, False, i + 1
        while at < len(tokens) and tokens[at].text not in (";", ",", *CLOSE):
            nested += (tokens[at].text == "?") - (tokens[at].text == ":")
            if nested < 0:
                if operand != i:
                    break  # the `:` of an outer conditional
                self._temporary(operand, assigns)
                operand, nested, assigns = at, 0, False
            assigns |= self._assigns(at)
            at = self.after(at)
        if operand != i:
            self._temporary(operand, assigns)

    def _temporary(self, i: int, assigns: bool) -> None:
        """Makes a temporary of the operand after the `?` or `:` at i."""
        if not assigns and self.tokens[i + 1].kind != "number" and self.tokens[i + 1].text != "nullptr":
            self.edit(i, i + 1, f"{self.tokens[i].text} mpsk_value->*")

    def _assigns(self, i: int) -> bool:
        return self.tokens[i].text.endswith("=") and self.tokens[i].text not in ("==", "!=", "<=", ">=")

    # --- methods and their address spaces -----------------------------------------------------------------------------

    def _methods(self) -> None:
        """A method that names no address space is one of objects in `thread`. One that is const may as well be of
        objects anywhere: temporaries, which to clang lie nowhere, are objects too."""
        tokens = self.tokens
        for i, token in enumerate(tokens):
            if token.text not in TYPE_KEYWORDS - {"enum"} or tokens[i - 1].text in ("enum", "<", ","):
                continue
            body, heading = i + 1, ("::", ":", ",", "<", "[[", "(")
            while body < len(tokens) and (tokens[body].kind == "name" or tokens[body].text in heading):
                is_list = tokens[body].text == "<"
                body = self.skip_template_arguments(body, len(tokens)) if is_list else self.after(body)
            if body < len(tokens) and tokens[body].text == "{":
                self.struct_names[body] = tokens[i + 1].text
                for start, stop, _ in self.statements(body + 1, self.match[body]):
                    self._method(start, stop, tokens[i + 1].text)

    def _method(self, start: int, stop: int, struct: str) -> None:
        tokens = self.tokens
        while tokens[start].text in ("public", "private", "protected") and tokens[start + 1].text == ":":
            start += 2
        i = self._end_of_template(start) if tokens[start].text == "template" else start
        words: set[str] = set()
        while i < stop and tokens[i].text != "(":
            text = tokens[i].text
            if text in ("{", "=", ";"):
                return
            words.add(text)
            if text in ("decltype", "alignas", "__attribute__") and tokens[i + 1].text == "(":
                i = self.after(i + 1)
            elif text == "operator":
                i += 2 if tokens[i + 1].text != "(" else 3
                while tokens[i].text != "(":
                    i += 1
            else:
                i = self.skip_template_arguments(i, stop) if text == "<" else self.after(i)
        if i >= stop or words & (TYPE_KEYWORDS | {"static", "friend", "using", "typedef", "static_assert", "~"}):
            return
        if tokens[i - 1].text == struct and "operator" not in words:
            return  # a constructor
        i = self.after(i)
        if tokens[i].text in ("{", ";", "->", "=", "noexcept"):
            self.insert_after(i - 1, " __private ")

    def _temporary_objects(self) -> None:
        """In T()(x) and T().f() the temporary becomes an object in `thread`, as the methods want."""
        tokens = self.tokens
        names = (self.type_names | self.template_types) - BUILTIN_TYPES
        for i, token in enumerate(tokens[:-3]):
            if token.text not in names or tokens[i - 1].text in TYPE_KEYWORDS | {"::", "operator"}:
                continue
            k = i + 1
            if tokens[k].text == "<":
                try:
                    k = self.skip_template_arguments(k, len(tokens))
                except CompileError:
                    continue  # a comparison
            if tokens[k].text in ("(", "{") and self.match[k] == k + 1 and tokens[k + 2].text in ("(", "."):
                self.edit(i, i + 1, f"(*mpsk::object({token.text}")
                self.insert_after(k + 1, "))")

    def _address_space(self, i: int) -> None:
        """An address space that qualifies a method, or `constant` of a static member or variable."""
        following = self.tokens[i + 1].text if i + 1 < len(self.tokens) else ""
        k = i - 1
        while self.tokens[k].text in ADDRESS_SPACES | {"const"}:
            k -= 1
        if self.tokens[k].text == ")" and following in ("{", ";", ":", "const", "->", "=", "noexcept"):
            self._space_of_this(i, k)
        elif self.tokens[i].text == "constant" and self._is_static_object(i):
            # At program scope _constant() replaced the whole declaration, and this edit with it.
            is_constexpr = any(t.text == "constexpr" for t in self.tokens[i - 3 : i + 3])
            self.edit(i, i + 1, "" if is_constexpr else "const")

    def _space_of_this(self, i: int, close_paren: int) -> None:
        """The address space at i of a method's `this`. Clang takes only its own names for it: `device` and `constant`
        become one, and a constructor, which has none, serves objects in all of them. Of methods that are then the same,
        one stays."""
        tokens = self.tokens
        start = i - 1
        while tokens[start - 1].text not in (";", "{", "}", ":"):
            start = self.match[start - 1] if tokens[start - 1].text in CLOSE else start - 1
        struct = self.opening(start)
        is_constructor = tokens[self.match[close_paren] - 1].text == self.struct_names.get(struct)
        space = {"thread": "__private", "threadgroup": "__local"}.get(tokens[i].text, "__global")
        if is_constructor or (tokens[i].text == "thread" and tokens[i - 1].text == "const"):
            space = ""  # the latter as in _methods()
        method = (struct, f"{self.text_of(start, i)} {space}")
        if method not in self.methods:
            self.methods.add(method)
            self.edit(i, i + 1, space)
            return
        end = i
        while tokens[end].text not in ("{", ";"):
            end = self.after(end)
        self.edit(start, self.after(end), "")

    def _is_static_object(self, i: int) -> bool:
        """Whether the `constant` at i declares an object (not a pointer) in a struct or function."""
        k = i
        while k > 0 and (self.tokens[k - 1].kind == "name" or self.tokens[k - 1].text == "::"):
            k -= 1
        if self.tokens[k - 1].text not in (";", "{", "}", ":", ")", ">"):
            return False
        if not any(t.text in ("static", "constexpr") for t in self.tokens[k : i + 3]):
            return False
        return self.tokens[self.end_of_declarator(i, len(self.tokens))].text != "(" and not self._declares_pointer(i)


def rewrite(text: str, std: str = "metal3.1") -> str:
    """Rewrites preprocessed Metal source for clang. Raises CompileError for what Metal refuses."""
    rewriter = Rewriter(_UNROLL.sub(r"\1", text), std)
    try:
        return rewriter.result()
    except IndexError:
        # What looked for the end of a declaration or statement has run past the last token.
        raise error_at(rewriter.tokens[-1], "the source ends inside a declaration or statement") from None
