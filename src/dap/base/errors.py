"""`DapError`, the one exception that the command line prints as a sentence."""


class DapError(ValueError):
    """A mistake in what the user gave: the message names the thing and says what to do next."""
