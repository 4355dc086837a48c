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
LOOP = re.compile(r"\bwhile\(.*body=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CALLED = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?([^,}]+)")
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
REGULAR = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
BY_AXES = re.compile(r"replica_groups=mesh\[([^]]*)\]\s*\{([^}]*)\}")
PAIRS = re.compile(r"source_target_pairs=\{\{")


class Collective(NamedTuple):
    """Of which kind, and over groups of how many devices; 0 for all of them."""

    kind: str
    group: int


def moved(program: str) -> Counter[str]:
    """Bytes by kind of collective, in one run of a compiled program: those of the results on one device.

    A collective inside a loop counts as often as the loop goes round. Raises ValueError for a loop of unknown length
    around a collective.
    """
    total: Counter[str] = Counter()
    for collective, count in by_group(program).items():
        total[collective.kind] += count
    return total


def launched(program: str) -> int:
    """How many collectives start in one run of a compiled program. Raises ValueError as `moved` does."""
    return by_group(program, lambda shapes: 1).total()


def by_group(program: str, measure: Callable[[str], int] | None = None) -> Counter[Collective]:
    """The same, kept apart by the size of the groups of devices. Raises ValueError as `moved` does.

    measure: what is added up, by a result's type; its bytes, if nothing else.
    """
    measure = measure or size
    parts = computations(program)

    def within(name: str) -> Counter[Collective]:
        total: Counter[Collective] = Counter()
        for line in parts.get(name, ()):
            if match := OPERATION.search(line):
                total[Collective(match[2], group(line))] += measure(match[1])
            elif match := LOOP.search(line):
                body, trips = within(match[1]), TRIPS.search(line)
                if body and not trips:
                    raise ValueError(f"a loop of unknown length moves {dict(body)}")
                total.update({kind: count * int(trips[1]) for kind, count in body.items()} if trips else {})
            else:
                for called in CALLED.findall(line):
                    total.update(within(called.strip().lstrip("%")))
        return total

    return within("")


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
