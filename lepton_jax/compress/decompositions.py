"""How a weight is decomposed into factors: truncated SVD and Tucker-2, in float64 on the host.

A norm is given by its root R: the error of a weight as a matrix [inputs, outputs] is |R error|. None is the plain norm.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lepton_jax.compress.ranks import Ranks

Weight = Float[np.ndarray, "... _"]
Matrix = Float[np.ndarray, "_ _"]
Root = Matrix | None

SWEEPS = 3
einsum = partial(np.einsum, optimize=True)  # by matrix products


class Method(NamedTuple):
    """A way to make a weight into factors.

    energies: (weight, root) -> squared singular values for each of its ranks. size: (the weight's shape, ranks) -> the
    parameters of its factors. factors: (weight, ranks, root) -> them, as `leaves.Factored` names them.
    """

    energies: Callable[[Weight, Root], tuple[np.ndarray, ...]]
    size: Callable[[tuple[int, ...], Ranks], int]
    factors: Callable[[Weight, Ranks, Root], dict[str, np.ndarray]]


def _svd_energies(weight: Weight, root: Root) -> tuple[np.ndarray, ...]:
    return (_energies(_rooted(weight.reshape(-1, weight.shape[-1]), root)),)


def _svd_size(shape: tuple[int, ...], ranks: Ranks) -> int:
    return ranks[0] * (int(np.prod(shape[:-1])) + shape[-1])


def _svd_factors(weight: Weight, ranks: Ranks, root: Root) -> dict[str, np.ndarray]:
    """The weight W times V V^T, V the first right singular vectors of R W: the best of its rank, R singular or not."""
    matrix = weight.reshape(-1, weight.shape[-1])
    right = np.linalg.svd(_rooted(matrix, root), full_matrices=False)[2][: ranks[0]]
    left = matrix @ right.T
    # both sides of one size train alike
    sizes = np.sqrt(np.linalg.norm(left, axis=0, keepdims=True))
    sizes = np.where(sizes > 0, sizes, 1)
    name = "down" if weight.ndim == 2 else "core"
    return {name: (left / sizes).reshape(*weight.shape[:-1], -1), "up": right * sizes.T}


svd = Method(_svd_energies, _svd_size, _svd_factors)
"""Truncated SVD of the weight as a matrix [inputs, outputs]; a convolution becomes a thin one and a 1x1."""


def _tucker_energies(weight: Weight, root: Root) -> tuple[np.ndarray, ...]:
    return _energies(_rooted(_by_input(weight), _channels(root, weight))), *_svd_energies(weight, root)


def _tucker_size(shape: tuple[int, ...], ranks: Ranks) -> int:
    (height, width, inputs, outputs), (r, s) = shape, ranks
    return inputs * r + height * width * r * s + s * outputs


def _tucker_factors(weight: Weight, ranks: Ranks, root: Root) -> dict[str, np.ndarray]:
    """By HOSVD and alternating sweeps (De Lathauwer et al. 2000, https://doi.org/10.1137/S0895479898346995).

    In another norm, the best core and outputs for the inputs that these find, or for those that this norm finds,
    whichever errs less: so never worse in this norm.
    """
    r, s = ranks
    down, up = _first(_by_input(weight), r), _first(weight.reshape(-1, weight.shape[-1]).T, s)
    for _ in range(SWEEPS):
        down = _first(_by_input(einsum("hwio,os->hwis", weight, up)), r)
        up = _first(einsum("hwio,ir->hwro", weight, down).reshape(-1, weight.shape[-1]).T, s)
    if root is None:
        return {"down": down, "core": einsum("hwio,ir,os->hwrs", weight, down, up), "up": up.T}
    right = np.linalg.svd(_rooted(_by_input(weight), _channels(root, weight)), full_matrices=False)[2][:r]
    other = _first(_by_input(weight) @ right.T, r)
    return min((_fitted(weight, start, s, root) for start in (down, other)), key=lambda found: found[0])[1]


tucker = Method(_tucker_energies, _tucker_size, _tucker_factors)
"""Tucker-2: a convolution becomes a 1x1, a small one and a 1x1 (Kim et al. 2016, https://arxiv.org/abs/1511.06530)."""


def _fitted(weight: Weight, down: Matrix, rank: int, root: Matrix) -> tuple[float, dict[str, np.ndarray]]:
    """(error, factors) of the best core and outputs of a rank, given `down`: reduced-rank regression."""
    height, width, inputs, outputs = weight.shape
    target = root @ weight.reshape(-1, outputs)
    seen = (root.reshape(-1, height * width, inputs) @ down).reshape(len(root), -1)
    # least squares by the Gram matrix, ten times sooner than by the singular values of what is seen
    wide = np.linalg.pinv(seen.T @ seen, rcond=1e-12, hermitian=True) @ (seen.T @ target)
    up = _first((seen @ wide).T, rank)
    core = wide @ up
    factors = {"down": down, "core": core.reshape(height, width, -1, rank), "up": up.T}
    return float(np.linalg.norm(target - seen @ core @ up.T)), factors


def _first(matrix: Matrix, rank: int) -> Matrix:
    """The first left singular vectors, also where the matrix has fewer columns than that."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]


def _energies(matrix: Matrix) -> np.ndarray:
    return np.square(np.linalg.svd(matrix, compute_uv=False))


def _rooted(matrix: Matrix, root: Root) -> Matrix:
    return matrix if root is None else root @ matrix


def _by_input(weight: Weight) -> Matrix:
    """A convolution [height, width, inputs, outputs] as a matrix with a row for each input channel."""
    return np.moveaxis(weight, 2, 0).reshape(weight.shape[2], -1)


def _channels(root: Root, weight: Weight) -> Root:
    """The norm of one channel vector, places in the window taken together."""
    return None if root is None else np.asarray(np.linalg.qr(root.reshape(-1, weight.shape[2]), mode="r"))
