"""Model loading for all adapters: any failure becomes one `NammTransferError` before the first question."""

from __future__ import annotations

import contextlib
import pickle
import re
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from namm_transfer.errors import NammTransferError

PATIENCE = 3.0
"""Seconds without a response after which the hub counts as unreachable."""
BUFFERS = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$")
"""Constants that older versions of transformers saved beside the weights; today's models compute them."""


def load_model(model_class: Any, source: str, kind: str, **options: Any) -> Any:
    """Load a model from a folder or the hub, with exactly the tensors that its configuration defines.

    Args:
        model_class: a model class of transformers, or one of its Auto classes.
        source: folder or hub id.
        kind: what is expected there, in words for the errors: "LLaVA-NeXT-Video".
        options: for `from_pretrained`.

    Raises:
        NammTransferError: nothing to load there, a model of another type, pickled objects among its weights, or tensors
            that are missing, unexpected or of another shape.
    """
    options = {**hub_options(source, kind), **options}
    located = {key: options[key] for key in ("local_files_only", "gguf_file") if key in options}
    try:
        config = options.get("config") or AutoConfig.from_pretrained(source, **located)
        wanted = getattr(getattr(model_class, "config_class", None), "model_type", config.model_type)
        if config.model_type != wanted:
            raise NammTransferError(f"{source!r} is a model of type {config.model_type!r}; expected {kind} ({wanted})")
        model, found = model_class.from_pretrained(source, **options, output_loading_info=True)
    except NammTransferError:
        raise
    except pickle.UnpicklingError as error:
        raise NammTransferError(f"{source!r}: its weights hold more than tensors, which is refused") from error
    except Exception as error:  # a damaged or foreign file can break the loading code anywhere
        reason = in_short(error)
        if isinstance(error, KeyError) and error.args == (options.get("attn_implementation"),):
            reason = f"a {config.model_type!r} has attention of its own, which the memory's cannot replace"
        raise NammTransferError(f"{source!r} holds no {kind} that can be loaded: {reason}") from error
    for what in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(f"{what}_keys") or ())
        if keys := [key for key in keys if what != "unexpected" or not BUFFERS.search(key)]:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise NammTransferError(f"{source!r} is no complete {kind}: {len(keys)} {what} tensors ({shown})")
    return model


def read_model_type(source: str, kind: str) -> str:
    """Read the model type from the configuration in a folder or on the hub, for example "llava_next_video".

    Raises:
        NammTransferError: nothing to load there.
    """
    options = hub_options(source, kind)
    try:
        return str(AutoConfig.from_pretrained(source, **options).model_type)
    except Exception as error:  # a damaged or foreign file can break the loading code anywhere
        raise NammTransferError(f"{source!r} holds no {kind} that can be loaded: {in_short(error)}") from error


def hub_options(source: str, kind: str = "model") -> dict[str, Any]:
    """Return keywords for `from_pretrained` that fall back to the hub's local cache if the hub cannot be reached.

    Raises:
        NammTransferError: `source` is no folder, and the hub cannot have it or cannot be reached.
    """
    if source and Path(source).is_dir():
        return {}
    try:
        cached = isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError:
        raise NammTransferError(
            f"no {kind} at {source!r}: it is neither a folder nor a name on the hub (OWNER/MODEL)"
        ) from None
    if hub_answers():
        return {}
    if not cached:
        raise NammTransferError(
            f"no {kind} at {source!r}: it is no folder and not in the hub's cache, and the hub ({constants.ENDPOINT}) "
            "cannot be reached"
        )
    return {"local_files_only": True}


def hub_answers() -> bool:
    """Return True if the hub sends any response within `PATIENCE` seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            answered.set()

    # In a thread, since a name server that does not answer keeps no timeout.
    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(PATIENCE)


def in_short(error: Exception) -> str:
    """Return the type and first line of an exception, at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
