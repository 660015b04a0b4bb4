"""The exceptions that programs show to a person without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a path or an argument: what was expected, what found, what to do."""


class TransientError(UserError):
    """What may be over when the same command is given again, such as a full disk."""


class LockHeldError(TransientError):
    """Another process has what this one needs."""
