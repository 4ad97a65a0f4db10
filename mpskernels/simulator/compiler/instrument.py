"""Instruments a kernel, as text of LLVM's: the device is told of each access to memory and counts each basic block.

A kernel is compiled to optimised IR with line tables; here

- a load, store, atomic operation or copy asks the device for the address to use, naming its place in the source. What
  is plainly the thread's own memory is left alone. The pieces in which LLVM moves a vector are one access;
- a shift tells by how much;
- a 32-bit index with a product in it is worked out in 64 bits as well, and the access is told if they differ;
- every basic block counts its passes, and a table says what one pass does;
- before a thread waits for others, the device is told where it is.

The tables are device/abi.h's mpsk_site, mpsk_block and mpsk_code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_NAME = r'(?:[%@](?:[\w.$-]+|"[^"]*"))'
_DEFINITION = re.compile(rf"\s*({_NAME}) = (?:tail |musttail |notail )?(\w+)")
_LABEL = re.compile(r'([\w.$-]+|"[^"]*"):')
_DEBUG = re.compile(r"!dbg !(\d+)")
_ALIGN = re.compile(r", align (\d+)")
_LOAD = re.compile(rf"\s*{_NAME} = load (?:atomic )?(?:volatile )?(.+?), ptr ({_NAME}|null)")
_STORE = re.compile(rf"\s*store (?:atomic )?(?:volatile )?(.+), ptr ({_NAME}|null)(?=[, ]|$)")
_ATOMIC = re.compile(rf"\s*{_NAME} = (?:atomicrmw|cmpxchg)(?: weak)?(?: volatile)?(?: \w+)? ptr ({_NAME}|null), (\S+)")
_MEMORY = re.compile(r"call void @llvm\.(memcpy|memmove|memset)\.")
_CALLED = re.compile(r"\bcall\b.*?@([\w.$]+)\(")
_WAITS = {"mpsk_simd", "mpsk_meet", "mpsk_threadgroup_barrier", "mpsk_simdgroup_barrier", "mpsk_fault"}
_PLACED = {
    "mpsk_matrix_memory",
    "mpsk_tensor_memory",
    "mpsk_shift",
    "mpsk_zero_division",
}  # whose last argument is the place of the call
# Headers that keep to the memory of lanes and to addresses that they were given.
_OWN_MEMORY = ("simdgroup_matrix.h", "simdgroup.h", "runtime.h", "tensor_ops.h")
_POINTER = re.compile(rf"ptr (?:\w+ |align \d+ |dereferenceable\(\d+\) )*({_NAME}|null)")
_GEP = re.compile(
    rf"\s*{_NAME} = getelementptr (?:inbounds |nuw |nusw )*(.+?), ptr ({_NAME})((?:, i\d+ \S+?)*)(?:, !dbg|$)"
)
_BYTES = re.compile(r"^, i64 (-?\d+)$")
_CAST = re.compile(rf"\s*{_NAME} = (zext|sext) (?:nneg )?i32 ({_NAME}) to i64")
_ARITHMETIC = re.compile(
    rf"\s*{_NAME} = (add|sub|mul|shl|or disjoint) (?:nuw |nsw )*i32 ({_NAME}|-?\d+), ({_NAME}|-?\d+)(?=[, ]|$)"
)
_SHIFT = re.compile(rf'\s*%"?sh[lr]\.mask\S* = and i(\d+) ({_NAME}), (\d+)')  # clang keeps only the bits that count
_SCALARS = {"half": 2, "bfloat": 2, "float": 4, "double": 8, "ptr": 8}
_VECTOR = re.compile(r"<(\d+) x ([\w]+)>")

_FLOAT_OPERATIONS = {"fadd": 1, "fsub": 1, "fmul": 1, "fdiv": 1, "fneg": 1, "frem": 1}
_INTEGER_OPERATIONS = {
    *("add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "shl", "lshr", "ashr", "and", "or", "xor", "icmp"),
    "getelementptr",
}
_FREE = {"phi", "bitcast", "freeze", "extractelement", "insertelement", "alloca", "ptrtoint", "inttoptr", "unreachable"}
_FREE_CALLS = ("llvm.assume", "llvm.lifetime", "llvm.dbg", "llvm.frameaddress", "llvm.experimental.noalias")
_SPECIAL = re.compile(
    r"(?:llvm\.)?(?:sqrt|exp|exp2|exp10|log|log2|log10|sin|cos|tan|asin|acos|atan|atan2|sinh|cosh|tanh|asinh|acosh"
    r"|atanh|pow|fmod|cbrt|erf|hypot)f?(?:\.(?:f32|f16|bf16|v\d+f\d+))?"
)
# Of msl/mpsk/types.h; a float as the other operand makes a float.
_BFLOAT_OPERATOR = re.compile(r"operator(?:[-+*/]=?|\+\+|--)(?!.*<float\b)")
_FUSED = re.compile(r"llvm\.(?:fma|fmuladd)\.")


def _size(type_text: str) -> int:
    type_text = type_text.strip()
    if type_text in _SCALARS:
        return _SCALARS[type_text]
    if m := re.fullmatch(r"i(\d+)", type_text):
        return (int(m[1]) + 7) // 8
    if m := re.fullmatch(r"<(\d+) x (.+)>", type_text):
        return int(m[1]) * _size(m[2])
    raise ValueError(f"an access of the unknown type {type_text}")


@dataclass
class _Access:
    line: int
    kind: str  # "read", "write", "atomic", "atomic_store"
    pointer: str
    size: int
    align: int
    debug: str


@dataclass
class _Function:
    name: str
    lines: list[str]  # of the body, without the braces
    debug: str  # its !dbg
    definitions: dict[str, int] = field(default_factory=dict)  # value -> line


class _Places:
    """The metadata of a module: where an instruction stands in the source."""

    def __init__(self, lines: list[str], headers: Path):
        self.headers = str(headers)
        self.nodes = {}
        for line in lines:
            if line.startswith("!") and (m := re.match(r"!(\d+) = (?:distinct )?!(DI\w+)\((.*)\)$", line)):
                self.nodes[m[1]] = (m[2], m[3])
        self.files: dict[str, str] = {}

    def _field(self, node: str, key: str) -> str:
        m = re.search(rf'\b{key}: (?:!(\d+)|"((?:[^"\\]|\\.)*)"|(\d+))', self.nodes[node][1])
        return next((g for g in m.groups() if g is not None), "") if m else ""

    def _file(self, scope: str) -> str:
        if scope not in self.files:
            file = self._field(scope, "file")
            name = self._field(file, "filename") if file else ""
            folder = self._field(file, "directory") if file else ""
            self.files[scope] = name if name.startswith("/") or folder in ("", ".") else f"{folder}/{name}"
        return self.files[scope]

    def _function(self, scope: str) -> str:
        while self.nodes[scope][0] != "DISubprogram":
            scope = self._field(scope, "scope")
        return self._field(scope, "name")

    def frames(self, debug: str):
        """(file, line, column, function) of a !dbg, from the innermost inlined function outwards."""
        while debug:
            kind, _ = self.nodes[debug]
            if kind == "DISubprogram":
                yield self._file(debug), int(self._field(debug, "line") or 0), 0, self._field(debug, "name")
                return
            scope = self._field(debug, "scope")
            line, column = int(self._field(debug, "line") or 0), int(self._field(debug, "column") or 0)
            yield self._file(scope), line, column, self._function(scope)
            debug = self._field(debug, "inlinedAt")

    def in_header(self, debug: str, *names: str) -> bool:
        """Whether the innermost frame is in one of our headers."""
        frame = next(self.frames(debug), None) if debug else None
        return frame is not None and frame[0].startswith(self.headers) and Path(frame[0]).name in names

    def in_bfloat_operator(self, debug: str) -> bool:
        """Whether the innermost frame is an operator of which the result is a bfloat: it works in float and rounds."""
        frame = next(self.frames(debug))
        return self.in_header(debug, "types.h") and _BFLOAT_OPERATOR.match(frame[3]) is not None

    def user(self, debug: str):
        """The innermost frame outside our headers, if there is one."""
        for frame in self.frames(debug):
            if not frame[0].startswith(self.headers):
                return frame if frame[1] else None  # line 0 is that of an instruction made of two
        return None


class Instrumenter:
    """One module."""

    def __init__(self, text: str, headers: Path):
        self.lines = text.split("\n")
        self.places = _Places(self.lines, headers)
        self.globals: list[str] = []
        self.texts: dict[str, str] = {}
        self.sites: dict[tuple, str] = {}
        self.codes: list[str] = []
        self.fresh = 0

    def result(self) -> str:
        output: list[str] = []
        position = 0
        while position < len(self.lines):
            line = self.lines[position]
            if not line.startswith("define "):
                output.append(line)
                position += 1
                continue
            end = self.lines.index("}", position)
            name = re.search(r"@([\w.$]+|\"[^\"]*\")\(", line)[1]
            debug = m[1] if (m := _DEBUG.search(line)) else ""
            output += [line, *self._function(_Function(name, self.lines[position + 1 : end], debug)), "}"]
            position = end + 1
        output += _DECLARATIONS
        if self.codes:
            used = ", ".join(f"ptr {code}" for code in self.codes)
            # clang marks what must stay in one list of the module.
            for i, line in enumerate(output):
                if line.startswith("@llvm.compiler.used = "):
                    m = re.match(r"(.*)\[(\d+) x ptr\] \[(.*)\](, section.*)", line)
                    count = int(m[2]) + len(self.codes)
                    output[i] = f"{m[1]}[{count} x ptr] [{m[3]}, {used}]{m[4]}"
                    break
            else:
                self.globals.append(
                    f"@llvm.compiler.used = appending global [{len(self.codes)} x ptr] [{used}], "
                    'section "llvm.metadata"'
                )
        return "\n".join([*output, *_TYPES, *self.globals, ""])

    # --- Tables ---

    def _text(self, text: str) -> str:
        if text not in self.texts:
            name = f"@mpsk.text.{len(self.texts)}"
            data = text.encode() + b"\0"
            escaped = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data)
            self.globals.append(f'{name} = private unnamed_addr constant [{len(data)} x i8] c"{escaped}"')
            self.texts[text] = name
        return self.texts[text]

    def _site(self, frame: tuple, size: int = 0, align: int = 1, is_struct: bool = False) -> str:
        file, line, column, function = frame
        key = (file, line, column, function, size, align, is_struct)
        if key not in self.sites:
            name = f"@mpsk.site.{len(self.sites)}"
            self.globals.append(
                f"{name} = private unnamed_addr constant %mpsk.site {{ptr {self._text(file)}, "
                f"ptr {self._text(function)}, i32 {line}, i32 {column}, i32 {size}, i32 {align}, i32 {int(is_struct)}}}"
            )
            self.sites[key] = name
        return self.sites[key]

    def _name(self) -> str:
        self.fresh += 1
        return f"%mpsk.{self.fresh}"

    # --- Functions ---

    def _function(self, f: _Function) -> list[str]:
        if self.places.in_header(f.debug, *_OWN_MEMORY):
            return f.lines
        if "mpsk_derive_" in f.name:
            return f.lines  # it runs with no thread, when a pipeline is made
        for i, line in enumerate(f.lines):
            if m := _DEFINITION.match(line):
                f.definitions[m[1]] = i
        entry = "mpsk_entry_" in f.name
        before: dict[int, list[str]] = {}
        replaced: dict[int, str | None] = {}
        for block in self._blocks(f):
            self._instrument_block(f, block, entry, before, replaced)
        self._count(f, entry, before, replaced)
        result: list[str] = []
        for i, line in enumerate(f.lines):
            result += before.get(i, [])
            if (text := replaced.get(i, line)) is not None:
                result.append(text)
        return result

    def _blocks(self, f: _Function) -> list[range]:
        starts = [i for i, line in enumerate(f.lines) if _LABEL.match(line)]
        if not starts or starts[0] != 0:
            starts.insert(0, -1)
        return [range(a + 1, b) for a, b in zip(starts, [*starts[1:], len(f.lines)], strict=True)]

    def _private(self, f: _Function, pointer: str, entry: bool) -> bool:
        """Whether a pointer plainly leads to the thread's own memory, a constant of the program or the device's."""
        for _ in range(64):
            if pointer.startswith("@"):
                return True
            if pointer == "null":
                return False
            at = f.definitions.get(pointer)
            if at is None:
                return entry  # an argument of the entry: the thread, the slots
            line = f.lines[at]
            operation = _DEFINITION.match(line)[2]
            if operation == "alloca":
                return True
            if entry and operation == "load" and (m := _LOAD.match(line)) and m[2] == "%t":
                return True  # the thread's group
            if operation != "getelementptr" or not (m := _GEP.match(line)):
                return False
            pointer = m[2]
        return False

    def _accesses(self, f: _Function, block: range, entry: bool) -> list[_Access]:
        found: list[_Access] = []
        fallback = ""
        for i in reversed(block):  # what was moved here and has no place takes that of what comes next
            line = f.lines[i]
            if m := _DEBUG.search(line):
                fallback = m[1]
            if m := _LOAD.match(line):
                kind, pointer, size = "read", m[2], _size(m[1])
            elif m := _STORE.match(line):
                kind, pointer, size = "write", m[2], _size(_type_of(m[1]))
            elif m := _ATOMIC.match(line):
                kind, pointer, size = "atomic", m[1], _size(m[2])
            else:
                continue
            if " load atomic " in line:
                kind = "atomic"
            elif line.lstrip().startswith("store atomic "):
                kind = "atomic_store"
            debug = m[1] if (m := _DEBUG.search(line)) else fallback or f.debug
            if self._private(f, pointer, entry) or self.places.in_header(debug, *_OWN_MEMORY):
                continue
            align = int(m[1]) if (m := _ALIGN.search(line)) else 1
            found.append(_Access(i, kind, pointer, size, align, debug))
        return found[::-1]

    def _is_struct(self, f: _Function, access: _Access) -> bool:
        """Whether a whole struct is moved, which may have holes, and not a number or a vector."""
        if (m := _LOAD.match(f.lines[access.line])) and m[1].startswith("i") and access.align < access.size:
            return True
        if "copyload" not in f.lines[access.line]:
            return False
        at = f.definitions.get(access.pointer)
        gep = _GEP.match(f.lines[at]) if at is not None else None
        return bool(gep) and "%" in gep[1] and "metal::" not in gep[1] and "sroa_idx" not in access.pointer

    def _place(self, f: _Function, pointer: str) -> tuple[str, int]:
        """(base, offset) of an address."""
        offset = 0
        while (at := f.definitions.get(pointer)) is not None:
            m = _GEP.match(f.lines[at])
            if not m or m[1] != "i8" or not (step := _BYTES.match(m[3])):
                break
            pointer, offset = m[2], offset + int(step[1])
        return pointer, offset

    def _vectors(self, f: _Function, accesses: list[_Access]) -> list[tuple[_Access, list[tuple[_Access, int]]]]:
        """Accesses with the pieces that belong to them, each at its offset."""
        whole: list[tuple[_Access, list[tuple[_Access, int]]]] = []
        for access in accesses:
            if "sroa_idx" in access.pointer and not access.kind.startswith("atomic"):
                base, at = self._place(f, access.pointer)
                for head, pieces in reversed(whole):
                    size = head.size + sum(piece.size for piece, _ in pieces)
                    same = head.kind == access.kind and head.debug == access.debug and size + access.size <= 32
                    if same and self._place(f, head.pointer) == (base, at - size):
                        pieces.append((access, size))
                        break
                else:
                    whole.append((access, []))
            else:
                whole.append((access, []))
        return whole

    def _instrument_block(self, f, block, entry, before, replaced) -> None:
        for access, pieces in self._vectors(f, self._accesses(f, block, entry)):
            frame = self._frame(f, access)
            size = access.size + sum(a.size for a, _ in pieces)
            site = self._site(frame, size, access.align, self._is_struct(f, access))
            at = before.setdefault(access.line, [])
            pointer = self._wide_index(f, access.pointer, at)
            address = self._name()
            at.append(f"  {address} = call ptr @mpsk_{access.kind}(ptr {pointer}, ptr {site})")
            self._use(f, access, address, replaced)
            for piece, offset in pieces:
                its = self._name()
                at.append(f"  {its} = getelementptr i8, ptr {address}, i64 {offset}")
                self._use(f, piece, its, replaced)
        for i in block:
            line = f.lines[i]
            called = m[1] if (m := _CALLED.search(line)) else ""
            debug = m[1] if (m := _DEBUG.search(line)) else f.debug
            if called in _WAITS and (frame := self.places.user(debug)):
                before.setdefault(i, []).append(f"  call void @mpsk_here(ptr {self._site(frame)})")
            elif called in _PLACED:
                frame = self.places.user(debug) or self.places.user(f.debug) or ("", 0, 0, f.name)
                replaced[i] = re.sub(r"ptr (noundef )?null\)", f"ptr {self._site(frame)})", line)
            elif m := _MEMORY.search(line):
                self._copy(f, i, m[1], debug, entry, before, replaced)

    def _frame(self, f: _Function, access: _Access) -> tuple:
        """Where an access stands in the source. One that was made of two stands where its value was made, or its
        address."""
        if frame := self.places.user(access.debug):
            return frame
        todo = [name for name in re.findall(_NAME, f.lines[access.line]) if name in f.definitions]
        for _ in range(8):
            lines = [f.lines[f.definitions[name]] for name in todo]
            for line in lines:
                if (m := _DEBUG.search(line)) and (frame := self.places.user(m[1])):
                    return frame
            todo = [name for line in lines for name in re.findall(_NAME, line)[1:] if name in f.definitions]
        return self.places.user(f.debug) or next(self.places.frames(f.debug), ("", 0, 0, f.name))

    def _use(self, f, access: _Access, address: str, replaced) -> None:
        line = replaced.get(access.line) or f.lines[access.line]
        head, _, tail = line.rpartition(f"ptr {access.pointer}")
        replaced[access.line] = f"{head}ptr {address}{tail}"

    def _copy(self, f, i: int, which: str, debug: str, entry: bool, before, replaced) -> None:
        line = f.lines[i]
        arguments = line[line.index("(") :]
        pointers = [m[1] for m in _POINTER.finditer(arguments)]
        count = re.search(rf"i64 ({_NAME}|\d+), i1", arguments)[1]
        frame = self.places.user(debug) or self.places.user(f.debug)
        if frame is None:
            return
        roles = ["write"] if which == "memset" else ["write", "read"]
        for pointer, role in zip(dict.fromkeys(pointers), roles, strict=False):
            if self._private(f, pointer, entry):
                continue
            align = m[1] if (m := re.search(rf"align (\d+) {re.escape(pointer)}", arguments)) else "1"
            address = self._name()
            before.setdefault(i, []).append(
                f"  {address} = call ptr @mpsk_{role}_bytes(ptr {pointer}, i64 {count}, "
                f"ptr {self._site(frame, 0, int(align), True)})"
            )
            line = re.sub(rf"(ptr (?:[^,]*? )?){re.escape(pointer)}(?=[,)])", rf"\g<1>{address}", line)
        replaced[i] = line

    # --- Indices ---

    def _wide_index(self, f: _Function, pointer: str, before: list[str]) -> str:
        """The pointer, with MPSK_WRAPPED set where its 32-bit index is not what 64 bits would give."""
        wrapped = []
        base = pointer
        for _ in range(8):
            at = f.definitions.get(base)
            gep = _GEP.match(f.lines[at]) if at is not None else None
            if not gep:
                break
            base = gep[2]
            index = gep[3].rsplit(" ", 1)[-1] if gep[3].startswith(", i64 ") else ""
            cast = _CAST.match(f.lines[f.definitions[index]]) if index in f.definitions else None
            if cast and self._has_product(f, cast[2], 8):
                wrapped.append(self._is_wrapped(f, cast, index, before))
        if not wrapped:
            return pointer
        address = self._name()
        before.append(f"  {address} = ptrtoint ptr {pointer} to i64")
        for flag in wrapped:
            bit, marked = self._name(), self._name()
            before.append(f"  {bit} = select i1 {flag}, i64 {1 << 47}, i64 0")
            before.append(f"  {marked} = or i64 {address}, {bit}")
            address = marked
        result = self._name()
        before.append(f"  {result} = inttoptr i64 {address} to ptr")
        return result

    def _is_wrapped(self, f: _Function, cast: re.Match, index: str, before: list[str]) -> str:
        """Whether 64 bits would give another index, be its operands signed or not."""
        differ = []
        for extension in ("zext", "sext"):
            wide = self._wide(f, cast[2], extension, before, {})
            flag = self._name()
            before.append(f"  {flag} = icmp ne i64 {wide}, {index}")
            if cast[1] == "zext":  # below zero it is no product that is too large; the bounds will tell
                positive, both = self._name(), self._name()
                before.append(f"  {positive} = icmp sge i64 {wide}, 0")
                before.append(f"  {both} = and i1 {flag}, {positive}")
                flag = both
            differ.append(flag)
        wrapped = self._name()
        before.append(f"  {wrapped} = and i1 {differ[0]}, {differ[1]}")
        return wrapped

    def _operands(self, f: _Function, value: str) -> re.Match | None:
        at = f.definitions.get(value)
        return _ARITHMETIC.match(f.lines[at]) if at is not None else None

    def _has_product(self, f: _Function, value: str, depth: int) -> bool:
        m = self._operands(f, value)
        if not m or depth == 0:
            return False
        if m[1] == "mul" or (m[1] == "shl" and not m[3].startswith("%")):
            return True
        return any(self._has_product(f, operand, depth - 1) for operand in (m[2], m[3]) if operand.startswith("%"))

    def _wide(self, f: _Function, value: str, extension: str, before: list[str], known: dict[str, str]) -> str:
        if not value.startswith("%"):
            return value
        if value not in known:
            result = self._name()
            m = self._operands(f, value)
            if m and len(known) < 32 and not (m[1] == "shl" and m[3].startswith("%")):
                operands = [self._wide(f, operand, extension, before, known) for operand in (m[2], m[3])]
                before.append(f"  {result} = {m[1].split()[0].replace('or', 'add')} i64 {operands[0]}, {operands[1]}")
            else:
                before.append(f"  {result} = {extension} i32 {value} to i64")
            known[value] = result
        return known[value]

    # --- Counters ---

    def _count(self, f: _Function, entry: bool, before, replaced) -> None:
        number = len(self.codes)
        code, blocks = f"@mpsk.code.{number}", self._blocks(f)
        rows, base = [], self._name()
        for k, block in enumerate(blocks):
            rows.append(self._row(f, block, replaced))
            first = next(i for i in block if not f.lines[i].lstrip().startswith("%") or " = phi " not in f.lines[i])
            if k == 0:
                while " = alloca " in f.lines[first]:
                    first += 1
            counter, value, next_value = (self._name() for _ in range(3))
            lines = [
                f"  {counter} = getelementptr i32, ptr {base}, i64 {k}",
                f"  {value} = load i32, ptr {counter}",
                f"  {next_value} = add i32 {value}, 1",
                f"  store i32 {next_value}, ptr {counter}",
            ]
            if k == 0:
                lines.insert(0, f"  {base} = call ptr @mpsk_counters(ptr {code})")
            before[first] = lines + before.get(first, [])
        self.globals.append(f"@mpsk.blocks.{number} = private constant [{len(rows)} x %mpsk.block] [{', '.join(rows)}]")
        self.globals.append(
            f"{code} = internal global %mpsk.code {{ptr @mpsk.blocks.{number}, i32 {len(rows)}, i32 0, "
            f'i8 {int(not entry)}}}, section "mpsk_code", align 8'
        )
        self.codes.append(code)

    @staticmethod
    def _is_rsqrt(f: _Function, line: str) -> bool:
        """Whether one is divided by a square root: an operation of its own on a GPU."""
        m = re.search(rf"\bfloat 1\.0+e\+00, ({_NAME})", line)
        return bool(m) and m[1] in f.definitions and "llvm.sqrt." in f.lines[f.definitions[m[1]]]

    def _names_register(self, f: _Function, line: str) -> bool:
        """Whether a known element of a private array is addressed: on a GPU that is a register."""
        m = _GEP.match(line)
        return m is not None and "%" not in m[3] and self._private(f, m[2], entry=False)

    def _row(self, f: _Function, block: range, replaced) -> str:
        counts = dict.fromkeys(("instructions", "f32", "f16", "special", "integer", "matrix"), 0)
        matrix = ""
        inside = ("runtime.h", "simdgroup_matrix.h", "tensor.h", "tensor_ops.h")
        for i in block:
            line = f.lines[i]
            if line.startswith("    ") or line == "  ]" or not line.strip():
                continue  # the rows of a switch
            called = m[1] if (m := _CALLED.search(line)) else ""
            debug = m[1] if (m := _DEBUG.search(line)) else ""
            if called == "mpsk_mark_matrix":
                counts["matrix"] += int(re.search(r"i32 (?:noundef )?(\d+)\)", line)[1])
                replaced[i] = None
                if not matrix and (frame := self.places.user(debug or f.debug)):
                    matrix = self._site(frame)
                continue
            if debug and self.places.in_header(debug, *inside):
                continue  # the simulator's own work
            operation = m[2] if (m := _DEFINITION.match(line)) else line.split()[0]
            if operation in _FREE or called.startswith(_FREE_CALLS):
                continue
            counts["instructions"] += 1
            if operation == "tail" or called:
                operation = "call"
            width = int(m[1]) if (m := _VECTOR.search(line)) and m[2] in _SCALARS else 1
            is_half = re.search(r"\b(?:half|bfloat)\b", line) or (debug and self.places.in_bfloat_operator(debug))
            kind = "f16" if is_half else "f32"
            if operation == "fdiv" and self._is_rsqrt(f, line):
                pass  # counted with its root
            elif operation in _FLOAT_OPERATIONS:
                counts[kind] += width
                counts["special"] += width * (operation == "fdiv")
            elif _FUSED.match(called):
                counts[kind] += 2 * width
            elif called and _SPECIAL.fullmatch(called):
                counts["special"] += width
            elif operation in _INTEGER_OPERATIONS and not self._names_register(f, line):
                counts["integer"] += 1
        fields = ", ".join(f"i32 {value}" for value in counts.values())
        return f"%mpsk.block {{{fields}, ptr {matrix or 'null'}}}"


def _type_of(typed_value: str) -> str:
    """The type in front of a value: `<2 x float> %x`, `float 0.0`, `i32 7`, `<2 x float> <float 1.0, float 2.0>`."""
    if typed_value.startswith("<"):
        return typed_value[: typed_value.index(">") + 1]
    return typed_value.split()[0]


_TYPES = [
    "%mpsk.site = type {ptr, ptr, i32, i32, i32, i32, i32}",
    "%mpsk.block = type {i32, i32, i32, i32, i32, i32, ptr}",
    "%mpsk.code = type {ptr, i32, i32, i8}",
]
_DECLARATIONS = [
    *(f"declare ptr @mpsk_{kind}(ptr, ptr)" for kind in ("read", "write", "atomic", "atomic_store")),
    *(f"declare ptr @mpsk_{kind}_bytes(ptr, i64, ptr)" for kind in ("read", "write")),
    "declare void @mpsk_here(ptr)",
    "declare ptr @mpsk_counters(ptr)",
]


def mark_shifts(ir: str) -> str:
    """The module, before any optimisation, with a call before each shift that tells by how much.

    Afterwards it would be too late: a shift that a condition guards may be done without it.
    """
    lines: list[str] = []
    for number, line in enumerate(ir.split("\n")):
        if (m := _SHIFT.match(line)) and (debug := _DEBUG.search(line)):
            amount = m[2]
            if m[1] != "64":
                amount = f"%mpsk.shift.{number}"
                lines.append(f"  {amount} = zext i{m[1]} {m[2]} to i64, {debug[0]}")
            lines.append(f"  call void @mpsk_shift(i64 {amount}, i64 {m[3]}, ptr null), {debug[0]}")
        lines.append(line)
    if not re.search(r"(?m)^declare\b.*@mpsk_shift\(", ir):
        lines.append("declare void @mpsk_shift(i64, i64, ptr) nounwind willreturn memory(inaccessiblemem: readwrite)")
    return "\n".join(lines)


def instrument(ir: str, headers: Path) -> str:
    """The module with the calls and tables that the device watches it by. `headers` are those that users do not see."""
    return Instrumenter(ir, headers).result()
