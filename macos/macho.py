"""Reads a Mach-O binary for arm64: its symbols, the selectors it sends, and the protocols that are recorded in it."""

import re
import struct
from pathlib import Path

SELECTOR = re.compile(rb"[A-Za-z_]\w*:(?:\w+:)*")
CLASS = re.compile(rb"(?:MTL|MPS|NS)[A-Z]\w+")
METHODS = re.compile(r"__OBJC_\$_PROTOCOL_(INSTANCE|CLASS)_METHODS_(?:OPT_)?(\w+)")


class Memory:
    """The bytes of an image by address."""

    def __init__(self, image) -> None:
        self.sections = [(section.virtual_address, bytes(section.content)) for section in image.sections]

    def at(self, address: int, size: int) -> bytes:
        for start, content in self.sections:
            if start <= address < start + len(content):
                return content[address - start : address - start + size]
        raise ValueError(f"address {address:#x} is in no section")

    def word(self, address: int, form: str) -> int:
        return struct.unpack(form, self.at(address, struct.calcsize(form)))[0]

    def pointer(self, address: int) -> int:
        return self.word(address, "<Q") & 0xFFFFFFFFF  # a chained fixup keeps its link in the bits above

    def string(self, address: int) -> str:
        return self.at(address, 4096).split(b"\0", 1)[0].decode()

    def methods(self, address: int) -> dict[str, str]:
        """A method_list_t: type encodings by selector."""
        flags, count = struct.unpack("<II", self.at(address, 8))
        entries, found = address + 8, {}
        for entry in range(entries, entries + count * (flags & 0xFFFC), flags & 0xFFFC):
            if flags & 0x80000000:  # offsets, each from its own place; the first leads to a pointer to the name
                name = self.pointer(entry + self.word(entry, "<i"))
                types = entry + 4 + self.word(entry + 4, "<i")
            else:
                name, types = self.pointer(entry), self.pointer(entry + 8)
            found[self.string(name)] = self.string(types)
        return found


def read(path: Path) -> dict:
    import lief

    lief.logging.disable()  # it warns of tables that ziglang leaves out

    fat = lief.MachO.parse(str(path), lief.MachO.ParserConfig.quick)
    image = next(one for one in fat if one.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64)
    loaded = [lib.name for lib in image.libraries if lib.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    kinds = lief.MachO.Symbol.CATEGORY
    exports, imports, protocols = [], {}, {}
    memory = Memory(image) if image.get_section("__objc_protolist") else None
    for symbol in image.symbols:
        if symbol.category == kinds.UNDEFINED:
            # Two-level names say which library; those looked up in the whole process (Python's) come under "".
            ordinal = symbol.library_ordinal
            library = loaded[ordinal - 1] if 0 < ordinal <= len(loaded) else ""
            imports.setdefault(library, []).append(symbol.name)
        elif symbol.category == kinds.EXTERNAL:
            exports.append(symbol.name)
        elif memory and (match := METHODS.fullmatch(symbol.name)):
            sign = "-" if match[1] == "INSTANCE" else "+"
            methods = protocols.setdefault(match[2], {})
            methods.update({sign + name: types for name, types in memory.methods(symbol.value).items()})

    def strings(section: str) -> list[bytes]:
        found = image.get_section(section)
        return bytes(found.content).split(b"\0") if found else []

    # metal-cpp, which mlx uses, looks selectors and classes up by ordinary strings.
    literals = strings("__cstring")
    selectors = [*strings("__objc_methname"), *(text for text in literals if SELECTOR.fullmatch(text))]
    return {
        "exports": exports,
        "imports": imports,
        "protocols": protocols,
        "selectors": sorted({text.decode() for text in selectors if text}),
        "classes": sorted({text.decode() for text in literals if CLASS.fullmatch(text)}),
        "signed": image.has_code_signature,
        "platform": ".".join(map(str, image.build_version.minos[:2])) if image.has_build_version else "",
    }


def functions(path: Path) -> dict[str, bytes]:
    """The machine code of each function of an object file. Constants that a `mov` to a 32-bit register gives are left
    out: the line numbers of error messages are among them, and differ whenever a header does."""
    import lief

    fat = lief.MachO.parse(str(path), lief.MachO.ParserConfig.quick)
    image = next(iter(fat))
    text = image.get_section("__text")
    if text is None:
        return {}
    content, start = bytes(text.content), text.virtual_address
    end = start + len(content)
    places = sorted({(one.value, one.name) for one in image.symbols if one.numberof_sections == 1 and one.value < end})
    places = [(place, name) for place, name in places if not name.startswith(("ltmp", "l_"))]
    found = {}
    for (place, name), (after, _) in zip(places, [*places[1:], (end, "")], strict=True):
        words = struct.unpack(f"<{(after - place) // 4}I", content[place - start : after - start])
        code = [word & ~(0xFFFF << 5) if word & 0xFF800000 == 0x52800000 else word for word in words]
        found[name] = struct.pack(f"<{len(code)}I", *code)
    return found
