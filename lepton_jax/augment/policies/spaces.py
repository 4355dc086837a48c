"""How strong each operation is at each level: torchvision's magnitudes, as the amounts of `operations`.

A space names the operations that a policy may choose, in torchvision's order. The levels of a policy are bins: bin 0 is
the weakest. Signed operations have two amounts a bin, of which one is drawn.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lepton_jax.augment.image import Canvas
from lepton_jax.augment.policies.operations import NAMES
from lepton_jax.errors import InputError, unknown

Amounts = np.ndarray  # float32 [2 signs, bins]
Levels = Callable[[int, Canvas], Amounts]  # (bins, the image's (height, width)) -> amounts
Space = Mapping[str, Levels]


def unused(bins: int, size: Canvas) -> Amounts:
    """The amounts of an operation that takes no notice of them."""
    return np.zeros((2, bins), np.float32)


def _signed(most: Callable[[Canvas], float]) -> Levels:
    """From 0 up to an end that depends on the image, or down."""
    return lambda bins, size: np.array([1, -1], np.float32)[:, None] * linspace(0, most(size), bins)


def _pixels(most: Callable[[Canvas], float]) -> Levels:
    """The same in whole pixels, towards 0."""
    return lambda bins, size: np.trunc(_signed(most)(bins, size))


def _factors(most: float) -> Levels:
    """From 1 up to 1 + most, or down to 1 - most."""
    return lambda bins, size: 1 + _signed(lambda size: most)(bins, size)


def _bits(kept: int, lost: int) -> Levels:
    """From `kept` bits down by `lost`."""
    return lambda bins, size: _unsigned(np.round(kept - np.arange(bins) / (max(bins - 1, 1) / lost)))


def _thresholds(bins: int, size: Canvas) -> Amounts:
    """From white, where nothing but white is inverted, down to black."""
    return _unsigned(np.float32(255) * linspace(1, 0, bins))


def _unsigned(amounts: np.ndarray) -> Amounts:
    return np.stack([amounts, amounts]).astype(np.float32)


def _space(
    shear: float, across: Callable[[int], float], turn: float, factor: float, bits: tuple[int, int]
) -> dict[str, Levels]:
    """torchvision's operations, with the strongest amounts as given; `across` is pixels by the side's length."""
    return {
        "shear_x": _signed(lambda size: shear),
        "shear_y": _signed(lambda size: shear),
        "translate_x": _pixels(lambda size: across(size[1])),
        "translate_y": _pixels(lambda size: across(size[0])),
        "rotate": _signed(lambda size: turn),
        "brightness": _factors(factor),
        "color": _factors(factor),
        "contrast": _factors(factor),
        "sharpness": _factors(factor),
        "posterize": _bits(*bits),
        "solarize": _thresholds,
        "autocontrast": unused,
        "equalize": unused,
    }


RANDAUGMENT: Space = {"identity": unused, **_space(0.3, lambda side: 150.0 / 331.0 * side, 30, 0.9, (8, 4))}
TRIVIALAUGMENT: Space = {"identity": unused, **_space(0.99, lambda side: 32.0, 135, 0.99, (8, 6))}  # the wide space
AUTOAUGMENT: Space = {**_space(0.3, lambda side: 150.0 / 331.0 * side, 30, 0.9, (8, 4)), "invert": unused}
AUGMIX: Space = _space(0.3, lambda side: side / 3, 30, 0.9, (4, 4))


def linspace(start: float, end: float, bins: int) -> np.ndarray:
    """`bins` even steps in float32, from both ends to the middle, rounded once each, as torch.linspace."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(bins - 1, 1)))
    place = np.arange(bins, dtype=np.float64)
    return np.where(place < bins // 2, first + step * place, last - step * (bins - 1 - place)).astype(np.float32)


def table(space: Space, names: Sequence[str], bins: int, size: Canvas) -> np.ndarray:
    """The amounts of the operations `names`: float32 [operations, 2 signs, bins]."""
    return np.stack([space.get(name, unused)(bins, size) for name in names]).astype(np.float32)


def check_operations(names: Sequence[str], known: Sequence[str] = NAMES) -> None:
    """Raise InputError for no operation, or one that is not known."""
    if not names:
        raise InputError("a policy of no operations", f"name some of: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown("operation", name, known)


def check_level(level: int, bins: int) -> None:
    """Raise InputError for a level that is none of the bins."""
    if bins < 2:
        raise InputError(f"{bins} bins leave no levels of strength", "give at least 2 bins; 31 are usual")
    if not isinstance(level, int) or not 0 <= level < bins:
        raise InputError(
            f"the magnitude {level} is not one of {bins} bins", f"give a whole number from 0 (weakest) to {bins - 1}"
        )
