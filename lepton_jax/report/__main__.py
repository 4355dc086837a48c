"""Runs side by side.

python -m lepton_jax.report runs/a runs/b --out comparison.html
"""

import pathlib

from tyro.conf import Positional

from lepton_jax import cli, runs
from lepton_jax.errors import InputError
from lepton_jax.report import comparison, printed, side_by_side


def main(
    directories: Positional[tuple[pathlib.Path, ...]], out: pathlib.Path = pathlib.Path("comparison.html")
) -> None:
    """Lay runs side by side: scores, curves, and the flags that differ, as one page and as a table here.

    Args:
        directories: Two to eight run directories; differences are from the first finished one.
        out: The page to write, .html. Links in it are relative.
    """
    found = comparison.read(directories)
    check(out)
    write(out, side_by_side.render(found, out.parent))
    printed.show(found)
    print(f"\npage  {out}")


def check(out: pathlib.Path) -> None:
    """Raise InputError for a page that would overwrite something else."""
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {out} does not end in .html", "name a page: --out comparison.html")
    if out.is_dir():
        raise InputError(f"--out {out} is a directory", f"name a page in it: --out {out / 'comparison.html'}")
    if out.name == "report.html" and (out.parent / "config.json").exists():
        raise InputError(f"--out {out} is the page of a run", "choose another name, as comparison.html")


def write(out: pathlib.Path, page: str) -> None:
    """Write the page, complete or not at all. Raises InputError where it cannot be written."""
    try:
        runs.replace(out, page)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--out {out} cannot be written: {reason}", "choose another place for the page") from error


if __name__ == "__main__":
    cli.command(main)
