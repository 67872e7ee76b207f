"""What the engine's errors are in Python. The message is the engine's own: what, where, what to do."""


class PinionError(RuntimeError):
    """A model could not be loaded, a request failed, or the engine stopped."""


class InvalidArgument(PinionError, ValueError):
    """A setting or an input is wrong, or asks for what is not implemented."""


class Exhausted(PinionError):
    """Memory or places in the queue ran out."""


class Aborted(PinionError):
    """The request was aborted, or the model shut down while it ran."""
