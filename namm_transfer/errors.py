"""The one error class of this package."""


class NammTransferError(Exception):
    """Something a user can put right: the message names the offending value and what was expected."""
