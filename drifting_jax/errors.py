"""The exceptions that programs show to a person without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a path or an argument: what was expected, what found, what to do."""


class Busy(UserError):
    """Another process has what this one needs; the same command may go well later."""
