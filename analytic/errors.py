"""The two errors that users see: what is wrong and where, then what would help."""


class UllageError(Exception):
    """A known failure (exit code 1): ``message`` names what and where, ``hint`` the way out."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(UllageError):
    """A request that cannot be meant (exit code 2): an unknown name, a negative size, contradictory flags."""

    exit_code = 2
