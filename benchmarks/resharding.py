"""Whether a checkpoint comes back bit for bit on every other mesh, in one process and in two.

    python -m benchmarks.resharding

Saved from 8x1, 4x2, 2x4 and 1x8 by one process and by two; restored onto these and onto 4x1, 2x2, 2x1 and 1x1 by one
process and by two (of which the last has no place for two). The value is the share of restores after which every
process held the very bits.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import record
from benchmarks.faulted import free_port

EIGHT = ("8x1", "4x2", "2x4", "1x8")
SMALLER = {4: ("4x1", "2x2"), 2: ("2x1",), 1: ("1x1",)}  # by the number of devices


class Restore(NamedTuple):
    """One checkpoint onto one mesh. savers, restorers: numbers of processes; same: whether all bits came back."""

    saved: str
    savers: int
    mesh: str
    restorers: int
    same: bool


def main() -> None:
    """Save and restore on every mesh."""
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        saved = [path for savers in (1, 2) for path in saves(place, savers, EIGHT)]
        found = restores(saved, 1, 8, [*EIGHT, *(mesh for meshes in SMALLER.values() for mesh in meshes)])
        for devices, meshes in {8: EIGHT, **SMALLER}.items():
            if devices > 1:
                found += restores(saved, 2, devices, meshes)
    rows = []
    for mesh in EIGHT:
        for savers in (1, 2):
            for restorers in (1, 2):
                same = [one.same for one in found if one[:2] == (mesh, savers) and one.restorers == restorers]
                rows.append([mesh, str(savers), str(restorers), len(same), sum(same)])
    value = sum(one.same for one in found) / len(found)
    head = ["saved from", "by processes", "restored by", "meshes", "same bits"]
    record.tell("resharding", head, rows, value, 1.0, value == 1.0)


def saves(place: pathlib.Path, savers: int, meshes: Sequence[str]) -> list[pathlib.Path]:
    """Checkpoints of eight devices in so many processes, PLACE/SAVERS/MESH each."""
    worked(savers, 8, ["--save", str(place / str(savers)), "--save-meshes", *meshes])
    return [place / str(savers) / mesh for mesh in meshes]


def restores(saved: Sequence[pathlib.Path], restorers: int, devices: int, meshes: Sequence[str]) -> list[Restore]:
    """Every checkpoint onto every mesh, by so many processes."""
    lines = worked(restorers, devices, ["--restore", *map(str, saved), "--meshes", *meshes])
    said: dict[tuple[str, str], list[bool]] = {}
    for line in map(json.loads, lines):
        said.setdefault((line["saved"], line["mesh"]), []).append(line["same"])
    found = []
    for (path, mesh), same in said.items():
        *_, savers, origin = pathlib.Path(path).parts
        found.append(Restore(origin, int(savers), mesh, restorers, same == [True] * restorers))
    return found


def worked(processes: int, devices: int, arguments: Sequence[str]) -> list[str]:
    """What the processes printed that did it together. Raises RuntimeError where one failed."""
    command = [sys.executable, "-m", "benchmarks.resharded", "--devices", str(devices), *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    if processes > 1:
        environment |= {"LEPTON_COORDINATOR": f"127.0.0.1:{free_port()}", "LEPTON_PROCESSES": str(processes)}
    started = [
        subprocess.Popen(
            command,
            env=environment | ({"LEPTON_PROCESS_ID": str(number)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    said = [process.communicate() for process in started]
    if failed := [error for process, (_, error) in zip(started, said, strict=True) if process.returncode]:
        raise RuntimeError(f"a process failed: {failed[0][-2000:]}")
    return [line for output, _ in said for line in output.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    import lepton_jax as lp

    lp.cli.command(main)
