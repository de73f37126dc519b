"""Adapters of other installed packages, by name."""

from __future__ import annotations

from typing import TypeVar

from namm_transfer import plugins
from namm_transfer.adapters.base import ModalityAdapter
from namm_transfer.errors import NammTransferError

GROUP = "namm_transfer.adapters"
"""Entry points by which other packages declare adapters: name -> class."""
AUTO = "auto"
"""Name of the adapter that this package has for a model."""

Adapter = TypeVar("Adapter", bound=ModalityAdapter)


def find_adapter(name: str, own: type[Adapter]) -> type[Adapter]:
    """Return the adapter class of a name.

    Args:
        name: "auto", or a name that another package declares.
        own: the class of this package that "auto" stands for. An evaluation calls its methods, so that an adapter of
            another package has to inherit from it.

    Raises:
        NammTransferError: nobody or several packages declare the name, or what is declared is no such class.
    """
    found = plugins.find("adapter", name, GROUP, {AUTO: own})
    if not isinstance(found, type) or not issubclass(found, own):
        raise NammTransferError(f"adapter {name!r} is {found!r}: expected a subclass of {own.__name__}")
    return found
