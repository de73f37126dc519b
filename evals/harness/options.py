"""The flags that every evaluation has, read from the command line, then from a TOML file, then from defaults."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro
from docstring_parser import parse_from_object
from pydantic import TypeAdapter, ValidationError

from namm_transfer import policies
from namm_transfer.errors import NammTransferError
from namm_transfer.policies import PolicySpec

POLICY_HELP = (
    f"Policies to compare, out of {', '.join(policies.names())}, each written name or name:key=value,... for example "
    "h2o:keep=0.5. May be repeated, and one value may hold several, separated by commas: "
    "full,streaming:sinks=4,window=252 is two. match=NAME asks for the cache size that policy NAME used "
    "(allocation=head: in each KV head); protect=4:64 never evicts the first 4 and the last 64 tokens."
)
"""Help of --policy, which names the policies of this package and of other installed ones."""


@dataclasses.dataclass
class EvalOptions:
    """The flags that every evaluation has. The options of a script inherit from this and may change defaults."""

    policy: Annotated[tuple[str, ...], tyro.conf.arg(help=POLICY_HELP)] = (
        "full,namm,streaming:match=namm,h2o:match=namm",
    )

    update_interval: int = 512
    """The policy acts each time a sequence has grown by this many tokens; spectral policies need a multiple of 16."""

    limit: int | None = None
    """Evaluate only this many samples, from the first on; all of them if not given."""

    seed: int = 0
    """Seed of all random numbers in this evaluation."""

    out: Path = Path("runs/evaluation")
    """Output folder for the records and for report.json, report.md and report.html."""

    resume: bool = False
    """Continue from the records in the --out folder: finished samples are not repeated, failed ones are tried again."""

    config: Path | None = None
    """TOML file with defaults for these flags (keys are the names of the flags); flags take precedence."""

    threads: int = 1
    """CPU threads per process. Another number may change the last bits of a result; for speed, start more processes."""

    def policies(self) -> list[PolicySpec]:
        """Parse the policies of `--policy`.

        Raises:
            NammTransferError: a policy or key is unknown, a value has the wrong type, or a key follows no policy.
        """
        return [policies.parse(text) for text in split_policies(self.policy)]


@dataclasses.dataclass
class ContextOptions(EvalOptions):
    """The flags of evaluations that ask about a context: a video, or a long text."""

    query_agnostic: bool = False
    """Read the video, or the text, before the question: the policy evicts without knowing what will be asked, all
    questions about a context are answered from copies of one cache, and nothing is evicted once a question is read."""

    context_cache: Path | None = None
    """Folder in which the caches of contexts are kept for other runs, which then read nothing but the questions; with
    --query-agnostic. A cache is used again only if model, policy and context are the same."""

    def check_context(self) -> None:
        """Raise `NammTransferError` if --context-cache is given without --query-agnostic, or is no folder."""
        if self.context_cache is not None and not self.query_agnostic:
            raise NammTransferError(f"--context-cache {str(self.context_cache)!r} needs --query-agnostic")
        if self.context_cache is not None and self.context_cache.exists() and not self.context_cache.is_dir():
            raise NammTransferError(f"--context-cache {str(self.context_cache)!r} is a file; expected a folder")


Options = TypeVar("Options")


def parse(options: type[Options], arguments: Sequence[str] | None = None) -> Options:
    """Read the options of a dataclass from the command line, then the file of `--config`, then its defaults.

    Wrong flags in `arguments` (`sys.argv[1:]` unless given) end the program with a message, as usual for command line
    tools.

    Raises:
        NammTransferError: the file is missing, is not TOML, or has an unknown key or a value of the wrong type; or an
            argument is not valid text.
    """
    given = _gathered(sys.argv[1:] if arguments is None else arguments, "--policy")
    check_text(given, "the command line")
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    file = finder.parse_known_args(given)[0].config
    default = options() if file is None else from_toml(options, file)
    return read_flags(options, args=given, default=default)


def _program() -> str | None:
    """Name the running command as it was typed, where it is not simply a script."""
    called, *words = sys.argv or [""]
    if words and Path(called).name == "namm-transfer":
        return f"namm-transfer {words[0]}"
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return None if module is None else f"python -m {module.name}"


def read_flags(options: type[Options], **settings: Any) -> Options:
    """Read a dataclass from the command line with `tyro.cli`, which gets the settings.

    `--help` shows the docstring of the class's module and, as running text, the one under each field; tyro itself would
    keep the line breaks that the source has there.
    """
    hints = get_type_hints(options, include_extras=True)
    for kind in reversed(options.__mro__[:-1]):
        for field in parse_from_object(kind).params:
            if text := " ".join((field.description or "").split()):
                options.__annotations__[field.arg_name] = Annotated[hints[field.arg_name], tyro.conf.arg(help=text)]
    described = sys.modules[options.__module__].__doc__ or options.__doc__
    return tyro.cli(options, **{"prog": _program(), "description": described, **settings})


def from_toml(kind: type[Options], path: Path) -> Options:
    """Make an object of a dataclass from a TOML file whose keys are its fields; dashes may replace underscores.

    Missing fields get their defaults. ``"none"`` stands for None in fields that may be None, since TOML has no null.

    Raises:
        NammTransferError: the file cannot be read, or a key or value is wrong; names file, key and value.
    """
    where = f"--config {str(path)!r}"
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in _read_toml(path, where).items():
        name = key.replace("-", "_")
        if name not in known or name == "config":
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            raise NammTransferError(f"{where}: unknown key {key!r}; {hint}")
        optional = NoneType in get_args(get_type_hints(kind)[name])
        values[name] = None if value == "none" and optional else value
    if isinstance(values.get("policy"), str):
        values["policy"] = [values["policy"]]
    check_text(values, where)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first: Any = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise NammTransferError(f"{where}: {name} = {_shortened(first['input'])}: {first['msg']}") from None


def _read_toml(path: Path, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NammTransferError(f"{where}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or nested too deeply
        raise NammTransferError(f"{where} is no TOML: {error}") from None


def split_policies(values: Iterable[str]) -> list[str]:
    """Split the values of `--policy` into single policies, in order and without repeats.

    Commas separate policies, except before a part `key=value` without `:` before its `=`, which belongs to the policy
    before it.

    >>> split_policies(["full,streaming:sinks=4,window=252", "namm"])
    ['full', 'streaming:sinks=4,window=252', 'namm']
    """
    texts: list[str] = []
    for value in values:
        start = len(texts)
        for part in filter(None, map(str.strip, value.split(","))):
            if "=" not in part or ":" in part.partition("=")[0]:
                texts.append(part)
            elif len(texts) == start:
                raise NammTransferError(f"--policy {value!r}: {part!r} continues no policy; expected name:{part}")
            else:
                texts[-1] += ("," if ":" in texts[-1] else ":") + part
    return list(dict.fromkeys(texts))


def _gathered(arguments: Sequence[str], flag: str) -> list[str]:
    """Combine all uses of a repeatable flag: `--policy a --policy b` becomes `--policy a b`."""
    rest: list[str] = []
    values: list[str] = []
    inside = False
    for argument in map(os.fspath, arguments):
        if argument == flag or argument.startswith(f"{flag}="):
            inside = argument == flag
            values += [] if inside else [argument.partition("=")[2]]
        elif inside and not argument.startswith("-"):
            values.append(argument)
        else:
            inside = False
            rest.append(argument)
    return [*rest, flag, *values] if len(rest) < len(arguments) else rest


def check_text(value: Any, where: str) -> None:
    """Raise an error for strings that cannot be written to a file: with a lone surrogate or a NUL character."""
    if isinstance(value, str) and (any("\ud800" <= letter <= "\udfff" for letter in value) or "\0" in value):
        raise NammTransferError(f"{where}: {_shortened(value)} is no text; expected UTF-8 without NUL bytes")
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    for item in value if isinstance(value, list | tuple) else ():
        check_text(item, where)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
