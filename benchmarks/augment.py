"""What augmentation costs: RandAugment against the same policy under plain vmap, and rotation against dm_pix's.

    python -m benchmarks.augment

Each pair runs in one process, in turn, on the same images. The value is how many times as fast RandAugment(2, 9) is as
its vmapped switch, in which every image runs every operation. Needs dm_pix: pip install dm-pix
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

BAR = 4.0  # RandAugment, times as fast
ROTATION_BAR = 10.0


def pictures(count: int, side: int) -> Any:
    """Random uint8 images [count, side, side, 3]."""
    import jax.numpy as jnp

    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8))


def policy(images: Any) -> dict[str, Callable[[], Any]]:
    """RandAugment(2, 9) of a batch, by its own way and under vmap; both compiled, of the same draws."""
    import jax

    randaugment = lp.augment.randaugment(2, 9)
    keys = jax.random.split(jax.random.key(0), len(images))
    drawn = jax.vmap(lambda key: randaugment.sample(key, images.shape[1:]))(keys)
    return {
        "lepton": _compiled(randaugment.batch or jax.vmap(randaugment.act), drawn, images),
        "peer": _compiled(jax.vmap(randaugment.act), drawn, images),
    }


def rotation(images: Any) -> dict[str, Callable[[], Any]]:
    """Each image turned by an angle of its own about its center, bilinearly, by Lepton and by dm_pix."""
    import jax
    import jax.numpy as jnp

    dm_pix = importlib.import_module("dm_pix")  # by name: a peer, not a requirement
    degrees = jnp.linspace(-30, 30, len(images))
    floats = images.astype(jnp.float32) / 255  # dm_pix turns floats alone

    def ours(image: Any, angle: Any) -> Any:
        return lp.augment.functional.rotate(image, angle, "bilinear")

    def theirs(image: Any, angle: Any) -> Any:
        return dm_pix.rotate(image, jnp.deg2rad(angle), order=1, mode="constant")

    return {
        "lepton": _compiled(jax.vmap(ours), floats, degrees),
        "peer": _compiled(jax.vmap(theirs), floats, degrees),
    }


def _compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The function of these arguments as a program, to be called without any; returns when it is done."""
    import jax

    program = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def main(batch: int = 56, side: int = 224, rounds: int = 10) -> None:
    """Compare both pairs.

    Args:
        batch: Images in a batch.
        side: Their height and width in pixels.
        rounds: Calls of each function; the figures are medians over them.
    """
    if importlib.util.find_spec("dm_pix") is None:
        raise lp.errors.InputError("dm_pix, the peer in rotation, is not installed", "pip install dm-pix")
    images = pictures(batch, side)
    rows, ratios = [], []
    for name, pair in (("RandAugment(2, 9), vmapped", policy(images)), ("rotation, dm_pix", rotation(images))):
        seconds = record.interleaved(pair, rounds)
        ratio, quartiles = record.spread(seconds["peer"] / seconds["lepton"])
        each = [1000 * float(np.median(seconds[which])) / batch for which in ("lepton", "peer")]
        rows.append([name, *each, ratio, quartiles])
        ratios.append(ratio)
    holds = ratios[0] >= BAR and ratios[1] >= ROTATION_BAR
    head = ["what, and its peer", "ms/image", "peer", "times", "quartiles"]
    record.tell("augment", head, rows, ratios[0], BAR, holds)


if __name__ == "__main__":
    lp.cli.command(main)
