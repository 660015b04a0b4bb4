"""The exceptions that programs show to a person without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a path or an argument; the message says what to do."""


class TransientError(UserError):
    """A failure that may be over when the same command is given again, such as a full disk."""


class LockHeldError(TransientError):
    """Another process holds the lock of a folder that this process needs."""


def first_line(error: BaseException) -> str:
    """Returns an error in one line: its type and the first line of its message, cut to fit."""
    text = str(error).strip().partition("\n")[0].partition(" See full TensorStore")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
