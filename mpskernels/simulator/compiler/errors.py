"""What the simulator's compiler raises."""


class CompileError(Exception):
    """A Metal source that does not compile; the text has the compiler's messages, with files and lines of the source."""
