"""Averages of finished models: of the checkpoints of one run, or of runs that began at the same parameters.

Wortsman et al. 2022, https://arxiv.org/abs/2203.05482 (model soups); Izmailov et al. 2018,
https://arxiv.org/abs/1803.05407 (averages along a run). Batch statistics are not averaged with them: measure them anew.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.types import Params


def uniform(candidates: Sequence[Params]) -> Params:
    """The mean of the parameters, taken in at least float32, in their own dtype; whole numbers as in the first.

    Raises InputError for no candidate and for candidates of different shapes.
    """
    if not candidates:
        raise InputError("there are no parameters to average", "give at least one tree of parameters")
    kinds = [jax.tree.map(lambda x: (jnp.shape(x), str(x.dtype)), candidate) for candidate in candidates]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            problem = f"the parameters of candidate {number} have other names, shapes or types than those of the first"
            raise InputError(problem, "average models of one architecture only")

    def mean(*leaves: jax.Array) -> jax.Array:
        if not tree.is_floating(leaves[0]):
            return leaves[0]
        wide = jnp.promote_types(leaves[0].dtype, jnp.float32)
        return (sum((x.astype(wide) for x in leaves[1:]), leaves[0].astype(wide)) / len(leaves)).astype(leaves[0].dtype)

    return jax.tree.map(mean, *candidates)


def greedy(candidates: Sequence[Params], score: Callable[[Params], float]) -> tuple[Params, list[int]]:
    """(the soup, the numbers of the candidates in it): from the best down, each is kept whose average is no worse.

    score: what to maximize, on held-out data; it is called once per candidate and once per trial. So the soup is at
    least as good as the best candidate by it. Raises InputError as `uniform` does.
    """
    uniform(candidates)
    alone = [score(candidate) for candidate in candidates]
    first, *others = sorted(range(len(candidates)), key=lambda number: -alone[number])
    kept, best = [first], alone[first]
    for number in others:
        reached = score(uniform([candidates[i] for i in (*kept, number)]))
        if reached >= best:
            kept, best = [*kept, number], reached
    return uniform([candidates[number] for number in kept]), kept
