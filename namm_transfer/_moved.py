"""Names that moved: the old ones serve for one release, with a warning."""

import importlib
import runpy
import sys
import warnings


def moved(name: str, new: str) -> None:
    """Serve the module `new` where the module `name` was imported, or run it where that was run by ``python -m``."""
    run = name == "__main__"
    old = sys.modules[name].__spec__.name if run else name  # type: ignore[union-attr]
    text = f"{old} is now {new}; the old name will be removed in the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=2 if run else 3)
    if run:
        runpy.run_module(new, run_name=name, alter_sys=True)
    else:
        sys.modules[name] = importlib.import_module(new)
