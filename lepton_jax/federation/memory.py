"""What a client keeps from round to round: in its process, and in a directory where it is to outlive it."""

import pathlib
import re
from typing import Any

import jax

from lepton_jax import weights
from lepton_jax.errors import InputError

KEPT = 8  # rounds, for a coordinator that goes back


class Memory:
    """What one client of one job keeps after each round that it has computed.

    begun: what it keeps before the first. directory: where all others are written to, under the name `who`, and found
    again; None for the process alone. Raises InputError for a directory that cannot be used, and for entries of another
    shape.
    """

    def __init__(self, begun: Any, directory: pathlib.Path | None = None, who: str = "client"):
        self._begun, self._entries = begun, dict[int, Any]()
        self._directory = directory if jax.tree.leaves(begun) else None
        self._who = who
        if self._directory:
            self._entries = self._found(self._directory)

    def after(self, taken: int | None) -> Any:
        """What it kept after the round in which its update was last taken; None for no round.

        Where that is not here any more, what it kept after the last one before.
        """
        last = -1 if taken is None else taken
        known = [number for number in self._entries if number <= last]
        return self._entries[max(known)] if known else self._begun

    def keep(self, number: int, own: Any, taken: int | None) -> None:
        """What it keeps if its update of a round is taken; before that the one of the round `taken` holds.

        It is on the disk when this returns. Entries of later rounds are undone. Raises InputError where it cannot be
        written.
        """
        self._entries[number] = own
        if self._directory:
            weights.save(self._file(self._directory, number), {"own": own})
        recent = sorted(known for known in self._entries if known <= number)[-KEPT:]
        for gone in self._entries.keys() - {*recent, taken}:
            del self._entries[gone]
            if self._directory:
                self._file(self._directory, gone).unlink(missing_ok=True)

    def _file(self, directory: pathlib.Path, number: int) -> pathlib.Path:
        return directory / f"{self._who}.{number}.safetensors"

    def _found(self, directory: pathlib.Path) -> dict[int, Any]:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in directory.iterdir())
        except OSError as error:
            raise InputError(f"--memory {directory} cannot be used: {error}", "name a directory to write to") from error
        of = re.compile(re.escape(self._who) + r"\.(\d+)\.safetensors")
        numbers = [int(match[1]) for name in names if (match := of.fullmatch(name))]
        return {number: self._read(self._file(directory, number)) for number in numbers}

    def _read(self, path: pathlib.Path) -> Any:
        try:
            return jax.device_get(weights.load(path, {"own": self._begun}))["own"]
        except InputError as error:
            remedy = "without it the client goes on from the entry before: move it away, or name another --memory"
            raise InputError(error.problem, remedy) from error
