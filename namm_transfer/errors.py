"""The errors of this package."""


class NammTransferError(Exception):
    """Something a user can put right: the message names the offending value and what was expected."""


class UnservedAttribute(NammTransferError, AttributeError):
    """An attribute that is refused; ``hasattr`` says no."""
