"""The error for wrong use of the command line."""


class UsageError(Exception):
    """Wrong options or values; its text is the whole message."""
