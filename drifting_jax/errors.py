"""The one exception that programs show to a person without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a path or an argument: one line, what was expected, found, and to do."""
