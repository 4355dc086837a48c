"""How the ranks of a factored convolution decide its time: multiplications say little, full vector registers much.

    python -m benchmarks.ranks

3x3 convolutions of batches of 128, each as Tucker-2 of several ranks, in turn with the whole one. No bar is set: the
figures are why the recipes of experiments.compress take ranks in multiples. The value is by how much the slower one of
two convolutions falls behind whose ranks are 31 and 32, of 64 channels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

BATCH = 128
CASES = {
    (16, 32): [(8, 8), (12, 12)],
    (32, 16): [(26, 26), (20, 29), (24, 24), (16, 16)],
    (64, 8): [(31, 31), (33, 26), (32, 32), (24, 24)],
}
"""{(channels, height and width): ranks}"""


def convolution(channels: int) -> lp.types.Model:
    """A 3x3 convolution as a model."""
    import jax

    def init(key: Any, inputs: Any) -> Any:
        return {"params": {"conv": {"kernel": jax.random.normal(key, (3, 3, channels, channels))}}}

    def apply(variables: Any, inputs: Any, train: bool, keys: Any) -> Any:
        kernel, form = variables["params"]["conv"]["kernel"], ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=form), {}

    return lp.types.Model(init, apply)


def calls(channels: int, size: int, ranks: list[tuple[int, int]]) -> dict[str, Callable[[], Any]]:
    """{"whole", or the ranks: one forward pass}."""
    import jax

    model = convolution(channels)
    images = np.random.default_rng(0).standard_normal((BATCH, size, size, channels), np.float32)
    variables = model.init(jax.random.key(0), images)
    found = {"whole": _call(model, variables, images)}
    for pair in ranks:
        rule = lp.compress.explicit({"conv/kernel": pair})
        parts = lp.compress.factorized(rule, convolution=lp.compress.tucker)
        small = {"params": parts.pack(*parts.init(variables["params"]))}
        found[f"{pair[0]}, {pair[1]}"] = _call(lp.compress.applied(model), small, images)
    return found


def _call(model: lp.types.Model, variables: Any, images: Any) -> Callable[[], Any]:
    import jax

    forward = jax.jit(lambda variables, images: model.apply(variables, images, False, None)[0])
    placed = jax.device_put((variables, images))
    return lambda: jax.block_until_ready(forward(*placed))


def main(rounds: int = 30) -> None:
    """Time convolutions whole and factored.

    Args:
        rounds: Calls of each.
    """
    rows, medians = [], {}
    for (channels, size), ranks in CASES.items():
        seconds = record.interleaved(calls(channels, size, ranks), rounds)
        for name, found in seconds.items():
            ratio, quartiles = record.spread(seconds["whole"] / found)
            medians[channels, name] = ratio
            rows.append([f"{channels} of {size}x{size}", name, float(np.median(found)) * 1e3, ratio, quartiles])
    value = medians[64, "32, 32"] / medians[64, "31, 31"]
    record.tell("ranks", ["channels", "ranks", "ms", "speed", "quartiles"], rows, value, None, None)


if __name__ == "__main__":
    lp.cli.command(main)
