"""What the command line says of its own use."""


class UsageError(Exception):
    """Wrong options or values; its text is the whole message."""
