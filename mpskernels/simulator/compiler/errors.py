"""What the simulator's compiler raises."""


class CompileError(SyntaxError):
    """A Metal source that does not compile; the text has the compiler's messages, with files and lines of the source.

    A SyntaxError, because that is what `torch.mps.compile_shader` raises.
    """
