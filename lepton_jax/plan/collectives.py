"""What a compiled program moves between devices, read from its text."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
CHANNEL = re.compile(r"channel_id=(\d+)")
LOOP = re.compile(r"\bwhile\(.*body=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CALLED = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?([^,}]+)")
FUSIONS = ("fused_computation", "async_collective_fusion")  # in which a collective may be taken apart
SCATTERED = "all-reduce-scatter"  # as XLA for TPUs writes one: an all-reduce and what each device keeps of it, fused
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
REGULAR = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
BY_AXES = re.compile(r"replica_groups=mesh\[([^]]*)\]\s*\{([^}]*)\}")
PAIRS = re.compile(r"source_target_pairs=\{\{")


class Collective(NamedTuple):
    """Of which kind, and over groups of how many devices; 0 for all of them."""

    kind: str
    group: int


def moved(program: str, devices: int = 8) -> Counter[str]:
    """Bytes by kind of collective, in one run of a compiled program: those of the results on one device, and of a
    reduce-scatter what it reduces, over `devices` where the program does not say.

    A collective inside a loop counts as often as the loop goes round. One that a compiler has taken apart and fused
    with what it hides behind counts once: its parts have one channel. Raises ValueError for a loop of unknown length
    around a collective.
    """
    total: Counter[str] = Counter()
    for collective, count in by_group(program, devices=devices).items():
        parts = (collective.group or devices) if collective.kind == "reduce-scatter" else 1
        total[collective.kind] += count * parts
    return total


def launched(program: str) -> int:
    """How many collectives start in one run of a compiled program. Raises ValueError as `moved` does."""
    return by_group(program, lambda shapes: 1).total()


def by_group(program: str, measure: Callable[[str], int] | None = None, devices: int = 8) -> Counter[Collective]:
    """The same, kept apart by the size of the groups of devices. Raises ValueError as `moved` does.

    measure: what is added up, by a result's type; its bytes, if nothing else.
    """
    measure = measure or size
    parts = computations(program)

    def within(name: str) -> dict[str, tuple[Collective, int]]:
        """By channel, or by line where there is none."""
        found: dict[str, tuple[Collective, int]] = {}
        for number, line in enumerate(parts.get(name, ())):
            if match := OPERATION.search(line):
                channel = CHANNEL.search(line) if name.startswith(FUSIONS) else None
                place = channel[1] if channel else f"{name}:{number}"
                kind, count, among = match[2], measure(match[1]), group(line)
                if name.startswith(SCATTERED):
                    kind, count = "reduce-scatter", -(-count // (among or devices))
                found[place] = (Collective(kind, among), count)
            elif match := LOOP.search(line):
                body, trips = within(match[1]), TRIPS.search(line)
                if body and not trips:
                    raise ValueError(f"a loop of unknown length moves {sorted(body.values())}")
                rounds = int(trips[1]) if trips else 0
                found |= {place: (collective, count * rounds) for place, (collective, count) in body.items()}
            else:
                for called in CALLED.findall(line):
                    found |= within(called.strip().lstrip("%"))
        return found

    total: Counter[Collective] = Counter()
    for collective, count in within("").values():
        total[collective] += count
    return total


def computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation of a program in HLO's text form; the entry's name is ""."""
    found: dict[str, list[str]] = {}
    name = None
    for line in program.splitlines():
        if match := COMPUTATION.match(line):
            name = "" if line.startswith("ENTRY") else match[1]
            found[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            found[name].append(line)
    return found


def group(line: str) -> int:
    """How many devices take part together in a collective, from its line; 2 for a permutation, 0 for all."""
    if match := BY_AXES.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := REGULAR.search(line):
        return int(match[2])
    if match := LISTED.search(line):
        return len(match[1].split(","))
    return 2 if PAIRS.search(line) else 0


def size(shapes: str) -> int:
    """The bytes of the arrays in a type like `(f32[3,3]{1,0}, f32[])`."""
    total = 0
    for kind, dimensions in ARRAY.findall(shapes):
        count = 1
        for length in filter(None, dimensions.split(",")):
            count *= int(length)
        total += count * WIDTHS[kind]
    return total
