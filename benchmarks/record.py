"""How a benchmark tells what it measured: a table for people, and as its last line one JSON object."""

import json
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.timing import interleaved as interleaved


def machine() -> str:
    """The devices and the processor, as a reader of the figures wants to know them."""
    import jax

    kinds = {device.device_kind for device in jax.devices() if device.platform != "cpu"}
    if kinds:
        return f"{jax.device_count()} {'/'.join(sorted(kinds))}, jax {jax.__version__}"
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names) or '?'} x {names[0] if names else platform.processor()}, jax {jax.__version__}"


def commit() -> str:
    """The commit that was measured, with a + where files differ from it; "unknown" outside a checkout."""
    root = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


COMMIT = commit()  # while what runs is what was read: files may change before a long benchmark ends


def tell(
    benchmark: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    value: float,
    bar: float | None,
    holds: bool | None,
) -> None:
    """Print the rows under their head, and the JSON object; bar and holds are None where nothing is to be reached."""
    texts = [list(map(str, head)), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for row in texts:
        name, *cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([name.strip().ljust(widths[0]), *cells]).rstrip())
    record = {
        "benchmark": benchmark,
        "value": float(f"{value:.6g}"),
        "bar": bar,
        "holds": None if bar is None else bool(holds),
    }
    print(json.dumps({**record, "machine": machine(), "commit": COMMIT}), flush=True)


def shown(cell: Any) -> str:
    """Text as it is, whole numbers with thousands, others to four figures."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def spread(ratios: np.ndarray) -> tuple[float, str]:
    """The median of ratios, and its quartiles as text."""
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(middle), f"{low:.3f}-{high:.3f}"
