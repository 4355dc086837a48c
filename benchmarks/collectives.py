"""What a step moves between devices, read from the compiled program and held against the least that it must move.

    python -m benchmarks.collectives

Data parallelism has to add up the gradients once: the lower bound is one all-reduce of the gradient's bytes. The value
is the bytes moved over that bound, the greatest over the models on 8x1 with a batch in one piece, which must not gather
anything either. The other rows are to look at. Bytes are those of the collectives' results on one device, in one step;
a collective inside a loop counts as often as the loop goes round.
"""

from typing import Any

import lepton_jax as lp
from benchmarks import record

BAR = 1.05


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
        bytes_by_kind = lp.plan.moved(program)
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
