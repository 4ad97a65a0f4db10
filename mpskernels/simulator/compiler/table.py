"""The table that a metallib carries: code that describes constants and kernels to the device (device/abi.h)."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import error_at
from .lexer import Token
from .source import Attribute

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
    constants: list[str] = field(default_factory=list)  # function constants that it depends on
    threadgroup_names: list[str] = field(default_factory=list)  # of its threadgroup declarations, by their numbers

    def accepts(self, count: int) -> bool:
        least, most = self.template_arguments or (1, 0)
        return least <= count <= most


@dataclass
class Constant:
    """A function constant."""

    name: str
    type: str
    index: str
    optional: bool  # the source asks whether it is defined


def table(constants: list[Constant], derived: list[str], kernels: list[Kernel]) -> str:
    lines = ["\nnamespace {"]
    for constant in constants:
        lines.append(
            f'__attribute__((section("mpsk_constants"), used)) const mpsk_constant mpsk_constant_{constant.name} = '
            f'{{"{constant.name}", "{constant.type}", {constant.index}, sizeof({constant.name}), '
            f"{str(constant.optional).lower()}, (void*)&{constant.name}, &mpsk_defined_{constant.name}}};"
        )
    for name in derived:
        section = '__attribute__((section("mpsk_derived"), used))'
        lines.append(f"{section} const mpsk_derive mpsk_derived_{name} = &mpsk_derive_{name};")
    for number, (kernel, instance) in enumerate((k, i) for k in kernels for i in k.instances):
        lines += _entry(number, kernel, instance)
    return "\n".join([*lines, "}"]) + "\n"


def _entry(number: int, kernel: Kernel, instance: Instance) -> list[str]:
    """One row of the table: the types of the arguments, what is checked of them, the function that binds them."""
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
            raise error_at(parameter.token, f"attribute '{name}' is not supported on a kernel argument")
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
                f"static_assert(a{i}::kind != mpsk_argument_builtin, \"kernel argument '{parameter.name}' must be a "
                f'pointer or reference in device, constant or threadgroup, or have a position or index attribute");'
            )
    slots = ", ".join(f"mpsk::slot<a{i}::kind, {index}>()" for i, index in enumerate(explicit))
    # One line, so that a refusal names the line of the instantiation.
    lines += [
        f'#line {token.line} "{token.file}"',
        f"constexpr auto numbers = mpsk::number_arguments({slots}); "
        f"static_assert(numbers.valid, \"kernel '{kernel.name}' has two arguments of one index, or an index that is "
        f'not in 0..30"); static_assert(mpsk::same_components<{", ".join(positions)}>(), '
        f"\"the position and size attributes of kernel '{kernel.name}' must all have the same number of components\");",
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
    names = "".join(f'"{name}", ' for name in kernel.threadgroup_names)
    uses = "".join(f"&mpsk_constant_{name}, " for name in kernel.constants)
    max_threads = kernel.max_threads + expression[len(expression.split("<")[0]) :] if kernel.max_threads else "0"
    lines += [
        "{}};",
        f"const mpsk_constant* const constants[] = {{{uses}0}};",
        f"const mpsk_text threadgroup_names[] = {{{names}0}};",
        '__attribute__((section("mpsk_kernels"), used)) const mpsk_kernel row = {',
        f'{instance.host_name}, "{kernel.token.file}", {kernel.token.line}, {count}, arguments, {max_threads}, '
        f"{len(kernel.constants)}, constants, threadgroup_names, &run, MPSK_SOURCE}};",
        "}",
    ]
    return lines
