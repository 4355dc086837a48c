"""Lottery tickets: training, pruning by magnitude and going back to the start, again and again."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from lepton_jax.compress import base
from lepton_jax.compress.masks import Masks, named
from lepton_jax.compress.ranking import Ranking, whole
from lepton_jax.errors import InputError
from lepton_jax.types import Params


class Ticket(NamedTuple):
    """Masks, and what training under them from the start came to."""

    masks: Masks
    trained: Params


def tickets(
    train: Callable[[Params, Masks], Params],
    start: Params,
    ranking: Callable[[float], Ranking],
    sparsities: Sequence[float],
    pattern: str = base.WEIGHTS,
) -> Iterator[Ticket]:
    """Tickets, the first dense, then one for each sparsity, trained when it is asked for.

    Frankle and Carbin 2019, https://arxiv.org/abs/1803.03635. Each is `train(start, masks)`, whose largest weights that
    are not yet hidden make the next masks; `start` may also be an early checkpoint (Frankle et al. 2020,
    https://arxiv.org/abs/1912.05671). ranking: by sparsity, as `ranking.across`. Raises InputError for sparsities that
    do not rise, and where the pattern matches no weight.
    """
    if list(sparsities) != sorted(set(sparsities)):
        raise InputError(f"the sparsities {list(sparsities)} do not rise", "hide more in each round")
    names = base.chosen(pattern, start)
    rankings = [ranking(sparsity) for sparsity in sparsities]

    def go() -> Iterator[Ticket]:
        masks = {name: jnp.ones(weight.shape, bool) for name, weight in named(start, names).items()}
        trained = train(start, masks)
        yield Ticket(masks, trained)
        for rank in rankings:
            weights = named(trained, names)
            masks = rank({name: jnp.where(masks[name], jnp.abs(w), -1) for name, w in weights.items()}, whole)
            trained = train(start, masks)
            yield Ticket(masks, trained)

    return go()


def rounds(share: float, times: int) -> list[float]:
    """Sparsities of pruning `share` of what is left, `times` times: 1 - (1 - share)^n.

    Raises InputError for a share outside (0, 1), or no times.
    """
    if not 0 < share < 1 or times < 1:
        raise InputError(f"pruning {share} of the rest {times} times is nothing", "give a share such as 0.2, 1 or more")
    return [1 - (1 - share) ** n for n in range(1, times + 1)]
