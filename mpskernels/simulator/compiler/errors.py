"""What the simulator's compiler raises."""

from __future__ import annotations

from .lexer import Token


class CompileError(SyntaxError):
    """A Metal source that does not compile; the text has the compiler's messages, with files and lines of the source.

    A SyntaxError, because that is what `torch.mps.compile_shader` raises.
    """


def error_at(token: Token, message: str) -> CompileError:
    return CompileError(f"{token.file}:{token.line}: error: {message}")
