"""The generated film of the adapter's tests serves these as well."""

from films import film_file

__all__ = ["film_file"]
