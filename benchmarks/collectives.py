"""What a step moves between devices, read from the compiled program and held against the least that it must move.

    python -m benchmarks.collectives

Data parallelism has to add up the gradients once: the lower bound is one all-reduce of the gradient's bytes. The value
is the bytes moved over that bound, the greatest over the models on 8x1 with a batch in one piece, which must not gather
anything either. The other rows are to look at. Bytes are those of the collectives' results on one device, in one step;
a collective inside a loop counts as often as the loop goes round.
"""

import re
from collections import Counter
from typing import Any

import lepton_jax as lp
from benchmarks import record

BAR = 1.05
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
LOOP = re.compile(r"\bwhile\(.*body=%?([\w.-]+)")
FUSED = ("fused_computation", "async_collective_fusion")
CHANNEL = re.compile(r"channel_id=(\d+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CALLED = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?([^,}]+)")


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


def moved(program: str, devices: int = 8) -> Counter[str]:
    """Bytes by kind of collective, in one run of a compiled program. Raises ValueError for a loop of unknown length
    around a collective.

    A collective that a compiler has taken apart and fused with what it hides behind counts once: its parts have one
    channel. A reduce-scatter counts what it reduces, on so many devices.
    """
    parts = computations(program)

    def within(name: str) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for number, line in enumerate(parts.get(name, ())):
            if match := OPERATION.search(line):
                channel = CHANNEL.search(line) if name.startswith(FUSED) else None
                found[channel[1] if channel else f"{name}:{number}"] = counted(name, match[2], size(match[1]), devices)
            elif match := LOOP.search(line):
                body, trips = within(match[1]), TRIPS.search(line)
                if body and not trips:
                    raise ValueError(f"a loop of unknown length moves {sorted(body.values())}")
                found |= {channel: (kind, count * int(trips[1])) for channel, (kind, count) in body.items() if trips}
            else:
                for called in CALLED.findall(line):
                    found |= within(called.strip().lstrip("%"))
        return found

    total: Counter[str] = Counter()
    for kind, count in within("").values():
        total[kind] += count
    return total


def counted(computation: str, kind: str, nbytes: int, devices: int) -> tuple[str, int]:
    """(the kind, the bytes) of a collective whose result has so many bytes."""
    if kind == "reduce-scatter":
        return kind, nbytes * devices
    # as XLA for TPUs writes one: an all-reduce and what each device keeps of it, fused
    return ("reduce-scatter" if computation.startswith("all-reduce-scatter") else kind), nbytes


def size(shapes: str) -> int:
    """The bytes of the arrays in a type like `(f32[3,3]{1,0}, f32[])`."""
    total = 0
    for kind, dimensions in ARRAY.findall(shapes):
        count = 1
        for length in filter(None, dimensions.split(",")):
            count *= int(length)
        total += count * WIDTHS[kind]
    return total


def compiled(name: str, axes: str, microbatches: int) -> tuple[str, int]:
    """(a training step of that model as a program, the bytes of its gradient)."""
    import jax
    import jax.numpy as jnp

    model = lp.models.build(name, 10)
    optimizer = lp.optimizers.build("sgd", 0.1)
    gradient = lp.accumulate(lp.plain(lp.supervised(model, lp.cross_entropy())), microbatches)
    batch = {
        "input": jax.ShapeDtypeStruct((256, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((256,), jnp.int32),
        "index": jax.ShapeDtypeStruct((256,), jnp.int32),
    }
    state = jax.eval_shape(lambda: lp.step.initial(model, optimizer, jax.random.key(0), batch["input"]))
    step = lp.step.compile(lp.descend(gradient, optimizer), state, batch, lp.mesh.make(axes), model.rules)
    return step.as_text(), lp.tree.nbytes(state.params)


CASES = [
    ("mlp", "8x1", 1),
    ("cnn", "8x1", 1),
    ("resnet20", "8x1", 1),
    ("resnet20", "8x1", 4),
    ("resnet18-small", "8x1", 1),
    ("resnet20", "data=2,fsdp=4", 1),
    ("resnet20", "4x2", 1),
]


def main() -> None:
    """Count the bytes of every case."""
    lp.mesh.simulate(8)
    rows: list[list[Any]] = []
    ratios, gathers = [], 0
    for name, axes, microbatches in CASES:
        program, gradient = compiled(name, axes, microbatches)
        bytes_by_kind = moved(program)
        total = sum(bytes_by_kind.values())
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in bytes_by_kind.most_common())
        rows.append([name, axes, microbatches, gradient, total, total / gradient, kinds])
        if (axes, microbatches) == ("8x1", 1):
            ratios.append(total / gradient)
            gathers += bytes_by_kind["all-gather"]
    head = ["model", "mesh", "microbatches", "gradient bytes", "bytes moved", "ratio", "by kind"]
    record.tell("collectives", head, rows, max(ratios), BAR, max(ratios) <= BAR and gathers == 0)


if __name__ == "__main__":
    lp.cli.command(main)
