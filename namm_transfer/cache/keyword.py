"""The keyword under which models take a key/value cache, which transformers 5.24 renamed."""

import transformers
from packaging.version import Version

CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
"""Use it as ``model(tokens, **{CACHE: cache})``, and alike with ``model.generate``, where any version has to work."""
