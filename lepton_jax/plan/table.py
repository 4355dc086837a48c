"""A plan as people read it."""

from collections import Counter
from collections.abc import Sequence

from lepton_jax.plan.accelerators import ACCELERATORS, Accelerator
from lepton_jax.plan.choice import SAFE, Plan, size, text
from lepton_jax.plan.collectives import KINDS
from lepton_jax.plan.prediction import Prediction


def told(plan: Plan, memory: float, accelerator: Accelerator, precision: str) -> str:
    """Every prediction in a line, the chosen one marked by an arrow."""
    head = ["", "mesh", "microbatches", "memory", "", "GFLOP", *KINDS, f"{accelerator.name}, ms"]
    rows = [line(p, p is plan.chosen, memory, accelerator, precision) for p in plan.predictions]
    return "\n".join(aligned([head, *rows]))


def line(prediction: Prediction, chosen: bool, memory: float, accelerator: Accelerator, precision: str) -> list[str]:
    """The cells of a prediction."""
    moved: Counter[str] = Counter()
    for collective, count in prediction.moved.items():
        moved[collective.kind] += count
    return [
        "->" if chosen else "",
        text(prediction.axes),
        str(prediction.microbatches),
        size(prediction.memory),
        "" if prediction.memory <= SAFE * memory else "too large",
        f"{prediction.flops / 1e9:,.4g}",
        *(size(moved[kind]) if moved[kind] else "-" for kind in KINDS),
        f"{1e3 * prediction.seconds(accelerator, precision):,.4g}",
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, in columns; the mesh to the left, all else to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if n < 2 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def parts(prediction: Prediction, precision: str) -> list[str]:
    """What the chosen one is made of, and how long it would take on each accelerator at best."""
    held = {
        "parameters, optimizer, statistics": prediction.state,
        "batch": prediction.batch,
        "activations, gradients, gathered parameters": prediction.temporaries,
    }
    times = (f"{a.name} {1e3 * prediction.seconds(a, precision):,.4g} ms" for a in ACCELERATORS.values())
    return [
        f"memory     {size(prediction.memory)} on each device:",
        *(f"           {size(nbytes):>10}  {what}" for what, nbytes in held.items()),
        f"roofline   {', '.join(times)}",
    ]
