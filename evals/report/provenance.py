"""Collect provenance: command, package versions, machine, git state, and checksums of models and data."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from namm_transfer import files
from namm_transfer.evals.report.schema import Provenance
from namm_transfer.policy import EvictionPolicy

PACKAGES = ("namm-transfer", "torch", "transformers", "accelerate", "numpy", "gymnasium", "mujoco", "decord2", "av")
"""Distributions whose versions are recorded if they are installed."""

HASHED = ("model", "data")
"""Keys of a run's description that name files or folders; `with_checksums` adds KEY_sha256 for each."""


def collect(processes: int) -> Provenance:
    """Collect the provenance of the current process."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    git_hash = _git("rev-parse", "HEAD")
    return Provenance(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **_versions()},
        platform=platform.platform(),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else str(accelerator or "none"),
        processes=processes,
        git_hash=git_hash,
        git_dirty=None if git_hash is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
    )


def with_checksums(description: dict[str, Any]) -> dict[str, Any]:
    """Add `model_sha256` and `data_sha256` to a description whose `model` and `data` are local files or folders.

    Each may be one path or a list of paths; a hub id gets no checksum. Paths inside this checkout or the installed
    packages are made relative to them.
    """
    result = dict(description)
    for key in HASHED:
        value = description.get(key)
        paths = [Path(path) for path in (value if isinstance(value, list | tuple) else [value]) if path is not None]
        if paths and f"{key}_sha256" not in description and all(path.exists() for path in paths):
            digests = [files.sha256(path) for path in paths]
            shown = [_portable(path) for path in paths]
            result[key], result[f"{key}_sha256"] = (
                (shown, digests) if isinstance(value, list | tuple) else (shown[0], digests[0])
            )
    return result


def _portable(path: Path) -> str:
    """Make a path relative to the installed packages or this checkout, if it is inside one of them."""
    for root in (Path(sysconfig.get_path("purelib")), Path(__file__).parents[2]):
        if path.resolve().is_relative_to(root.resolve()):
            return path.resolve().relative_to(root.resolve()).as_posix()
    return str(path)


def weights_sha256(policy: EvictionPolicy) -> str | None:
    """Compute the SHA-256 of a policy's weights and statistics as safetensors; None for a policy without any.

    For a saved NAMM it equals the output of `sha256sum model.safetensors`.
    """
    if not isinstance(policy, torch.nn.Module):
        return None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def saved_options(policy: EvictionPolicy) -> dict[str, Any] | None:
    """List the numbers and names that a policy with weights was built with, which its configuration file may say; None
    for other policies."""
    if not isinstance(policy, torch.nn.Module):
        return None
    stated = {name: getattr(policy, name, ...) for name in inspect.signature(type(policy)).parameters}
    plain = {
        name: value for name, value in stated.items() if value is None or isinstance(value, bool | int | float | str)
    }
    return plain | {"keep": policy.size.keep, "budget": policy.size.budget}


def _versions() -> dict[str, str]:
    installed = {
        distribution.name.lower(): distribution.version
        for distribution in metadata.distributions()
        if distribution.name
    }
    return {name: installed[name] for name in PACKAGES if name in installed}


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in this package's checkout; None outside a checkout or if git fails."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_name() -> str:
    """Return the name of the processor, if the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
