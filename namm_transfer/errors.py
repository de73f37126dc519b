"""The errors of this package."""


class NammTransferError(Exception):
    """An error that a user can correct: the message names the offending value and what was expected."""


class UnservedAttribute(NammTransferError, AttributeError):
    """Raised for an attribute that is refused on purpose; ``hasattr`` returns False for it."""
