"""`namm-transfer report`: merge, render, verify, diff, gallery, from-lm-eval."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from namm_transfer.errors import NammTransferError
from namm_transfer.evals.report import comparison, from_lm_eval, pages, publish, verification
from namm_transfer.evals.report.analysis import build


def merge_command(folders: Annotated[tuple[Path, ...], tyro.conf.Positional], /, *, out: Path) -> None:
    """Merge several evaluations into one report.

    Args:
        folders: Folders that evaluations wrote, each of a different task.
        out: Folder of the merged records and of report.json, report.md and report.html.
    """
    if not folders:
        raise NammTransferError(
            "nothing to merge; expected folders, as in: report merge runs/video runs/rl --out runs/all"
        )
    print(pages.terminal(publish.merge(folders, out), out))


def render_command(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Write report.json, report.md and report.html again from the records.

    Args:
        folder: Folder that an evaluation or a merge wrote.
    """
    report = build(folder)
    pages.write(report, folder)
    print(pages.terminal(report, folder))


def verify_command(
    folder: Annotated[Path, tyro.conf.Positional], /, *, samples: int = 3, seed: int = 0, tolerance: float = 0.0
) -> int:
    """Evaluate some samples again and compare with the records; exit status 0 if all are reproduced, else 1.

    If NAMM, model, data or options differ from those recorded, it names the differences and exits with 2.

    Args:
        folder: Folder that an evaluation or a merge wrote.
        samples: Number of samples of each task; each is evaluated under all policies.
        seed: Seed of the choice of samples.
        tolerance: Largest difference of a score that counts as equal; everything else must be equal. On another
            processor the last bits of a score may differ.
    """
    results = verification.verify(folder, samples=samples, seed=seed, tolerance=tolerance)
    print(verification.in_words(results, tolerance))
    return int(any(result.differences for result in results))


def diff_command(
    first: Annotated[Path, tyro.conf.Positional], second: Annotated[Path, tyro.conf.Positional], /
) -> None:
    """Compare two reports: configuration, versions, and scores with the significance of their differences.

    Args:
        first: Folder of the earlier report.
        second: Folder of the later report.
    """
    print(comparison.in_words(comparison.diff(first, second)))


def gallery_command(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional], /, *, out: Path = Path("docs/reports")
) -> None:
    """Write a gallery of several reports: index.html, index.md and headline.svg.

    Args:
        folders: Folders that evaluations or merges wrote.
        out: Folder of the gallery.
    """
    for item in publish.write_gallery(folders, out):
        print(f"{item.link}: {item.report.headline}")
    print(f"gallery: {out / 'index.html'}  (also index.md and headline.svg)")


def from_lm_eval_command(
    folder: Annotated[Path, tyro.conf.Positional], /, *, out: Path | None = None, metric: str | None = None
) -> None:
    """Convert results of lm-eval or lmms-eval with the model namm under several policies into a report.

    Args:
        folder: The --output_path of the harness, which was run once per policy with --log_samples.
        out: Folder of the records and of report.json, report.md and report.html; by default FOLDER/report.
        metric: Metric to use as the score; by default the first of each task for which higher is better.
    """
    out = out or folder / "report"
    from_lm_eval.convert(folder, out, metric)
    render_command(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the arguments name and return the exit status."""
    status = tyro.extras.subcommand_cli_from_dict(
        {
            "merge": merge_command,
            "render": render_command,
            "verify": verify_command,
            "diff": diff_command,
            "gallery": gallery_command,
            "from-lm-eval": from_lm_eval_command,
        },
        prog="namm-transfer report",
        description="Merge, render, verify, compare and publish reports, which depend only on the recorded results.",
        args=arguments,
    )
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NammTransferError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
