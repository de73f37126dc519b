"""The flags every evaluation has, and how they are read: command line, then TOML file, then the defaults."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from namm_transfer.errors import NammTransferError


@dataclasses.dataclass
class EvalOptions:
    """Flags that every evaluation has. A script's own options inherit from this and may give other defaults."""

    policy: tuple[str, ...] = ("full,namm,streaming:match=namm,h2o:match=namm",)
    """Policies to compare, out of full, recent, streaming, h2o, l2, value-norm, keydiff, leverage, tova, snapkv, random,
    namm and those of other packages, each written name or name:key=value,... for example h2o:keep=0.5. May be repeated,
    and one value may hold several, separated by commas: full,streaming:sinks=4,window=252 is two. match=NAME asks for
    the cache size that policy NAME used; protect=4:64 never evicts the first 4 and the last 64 tokens."""

    update_interval: int = 512
    """The policy acts each time a sequence has grown by this many tokens; spectral policies need a multiple of 16."""

    limit: int | None = None
    """Evaluate only the first so many samples; all of them if not given."""

    seed: int = 0
    """Seed of everything random in this evaluation."""

    out: Path = Path("runs/evaluation")
    """Folder of the records and of report.json, report.md and report.html."""

    resume: bool = False
    """Go on from the records in the --out folder; finished samples are not repeated."""

    config: Path | None = None
    """TOML file with defaults for these flags (keys are the names of the flags); a flag overrules the file."""

    threads: int = 1
    """CPU threads a process. Another number may change the last bit of a result; for speed, start more processes."""


Options = TypeVar("Options")


def parse(options: type[Options], arguments: Sequence[str] | None = None) -> Options:
    """Options of a dataclass from the command line: its flags, then the file of its `--config`, then its defaults.

    `--help` shows the docstring of the class's module and the one under each field. Flags in `arguments`
    (`sys.argv[1:]` unless given) that are wrong end the program with a message, as command line tools do.

    Raises:
        NammTransferError: the file is not there, is no TOML, or has a key or value that does not fit.
    """
    given = _gathered(sys.argv[1:] if arguments is None else arguments, "--policy")
    file = _value_of("--config", given)
    default = options() if file is None else _from_toml(options, Path(file))
    called, *words = sys.argv
    program = f"namm-transfer {words[0]}" if words and Path(called).name == "namm-transfer" else None
    described = sys.modules[options.__module__].__doc__ or options.__doc__
    return tyro.cli(options, prog=program, args=given, default=default, description=described)


def split_policies(values: Iterable[str]) -> list[str]:
    """The single policies in the values of `--policy`, in order and without repeats.

    A comma separates; but a part `key=value` with no `:` before its `=` continues the policy before it.

    >>> split_policies(["full,streaming:sinks=4,window=252", "namm"])
    ['full', 'streaming:sinks=4,window=252', 'namm']
    """
    specs: list[str] = []
    for value in values:
        start = len(specs)
        for part in filter(None, map(str.strip, value.split(","))):
            if "=" not in part or ":" in part.partition("=")[0]:
                specs.append(part)
            elif len(specs) == start:
                raise NammTransferError(f"--policy {value!r}: {part!r} continues no policy; expected name:{part}")
            else:
                specs[-1] += ("," if ":" in specs[-1] else ":") + part
    return list(dict.fromkeys(specs))


def _gathered(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments with all uses of a repeatable flag made one: `--policy a --policy b` to `--policy a b`."""
    rest: list[str] = []
    values: list[str] = []
    inside = False
    for argument in arguments:
        if argument == flag or argument.startswith(f"{flag}="):
            inside = argument == flag
            values += [] if inside else [argument.partition("=")[2]]
        elif inside and not argument.startswith("-"):
            values.append(argument)
        else:
            inside = False
            rest.append(argument)
    return [*rest, flag, *values] if len(rest) < len(arguments) else rest


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of the last use of a flag, before the arguments are really parsed."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument == flag:
            value = following
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def _from_toml(options: type[Options], path: Path) -> Options:
    try:
        values = {key.replace("-", "_"): value for key, value in tomllib.loads(path.read_text()).items()}
    except OSError as error:
        raise NammTransferError(f"--config {str(path)!r}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NammTransferError(f"--config {str(path)!r} is no TOML: {error}") from None
    known = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    for key in values:
        if key not in known or key == "config":
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            raise NammTransferError(f"--config {str(path)!r}: unknown key {key!r}; {hint}")
    if isinstance(values.get("policy"), str):
        values["policy"] = [values["policy"]]
    try:
        return TypeAdapter(options).validate_python(values)
    except ValidationError as error:
        first: Any = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise NammTransferError(f"--config {str(path)!r}: {name} = {first['input']!r}: {first['msg']}") from None
