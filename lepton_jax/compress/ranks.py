"""How many ranks each factored weight keeps: by energy, by ratio, by a budget over all weights, or as given.

A rule sees the weights that may be factored, as `Candidate`s, and gives the ranks of those that are. A weight that it
leaves out stays whole.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from lepton_jax.decay import require_regular
from lepton_jax.errors import InputError

Ranks = tuple[int, ...]


class Candidate(NamedTuple):
    """A weight that may be factored.

    energies: for each of its ranks the squared singular values, falling; what is cut off is the squared error. size:
    the parameters of factors of these ranks. whole: those of the weight.
    """

    energies: tuple[np.ndarray, ...]
    size: Callable[[Ranks], int]
    whole: int

    @property
    def least(self) -> Ranks:
        """Rank one throughout."""
        return (1,) * len(self.energies)

    def is_smaller(self, ranks: Ranks) -> bool:
        """Whether factors of these ranks have fewer parameters than the weight."""
        return self.size(ranks) < self.whole

    def lost(self, ranks: Ranks) -> float:
        """The share of the energy that these ranks cut off, added up over a weight's modes: the relative error."""
        pairs = zip(self.energies, ranks, strict=True)
        return sum(float(np.sum(energy[rank:]) / (np.sum(energy) or 1)) for energy, rank in pairs)


Rule = Callable[[Mapping[str, Candidate]], dict[str, Ranks]]
"""{name: candidate} -> {name: its ranks}."""


def by_energy(share: float) -> Rule:
    """The smallest ranks that keep this share of the squared singular values, of each weight and each of its modes.

    Raises InputError for a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"the share {share} of the energy is not above 0 and at most 1", "give one such as 0.9")

    def kept(energy: np.ndarray) -> int:
        total = np.cumsum(energy)
        return min(int(np.sum(total < share * total[-1])) + 1, len(energy))

    return lambda weights: {name: tuple(map(kept, weight.energies)) for name, weight in weights.items()}


def by_ratio(ratio: float) -> Rule:
    """The most that fits into this share of each weight's parameters, and rank 1 where nothing does.

    Raises InputError for a ratio that is not in (0, 1).
    """
    if not 0 < ratio < 1:
        raise InputError(f"the ratio {ratio} of parameters is not in (0, 1)", "give one such as 0.5")

    def fitted(name: str, weight: Candidate) -> dict[str, Ranks]:
        room = int(ratio * weight.whole) - weight.size(weight.least)
        return spread({name: weight}, room) if weight.is_smaller(weight.least) else {}

    return lambda weights: {name: ranks for each in weights for name, ranks in fitted(each, weights[each]).items()}


def by_budget(parameters: int) -> Rule:
    """At most so many parameters in all chosen weights together, those that stay whole among them: see `spread`.

    The rule raises InputError where the least ranks are already more.
    """

    def rule(weights: Mapping[str, Candidate]) -> dict[str, Ranks]:
        able = {name: weight for name, weight in weights.items() if weight.is_smaller(weight.least)}
        least = sum(min(weight.size(weight.least), weight.whole) for weight in weights.values())
        if parameters < least:
            problem = f"the chosen weights do not fit into {parameters} parameters: the least ranks take {least}"
            raise InputError(problem, f"give at least {least}, or choose fewer weights")
        return spread(able, parameters - least)

    return rule


def by_share(share: float) -> Rule:
    """`by_budget` of this share of the parameters of the chosen weights: where ranks cost least error, they go.

    Raises InputError for a share that is not in (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"the share {share} of parameters is not in (0, 1)", "give one such as 0.5")
    return lambda weights: by_budget(int(share * sum(weight.whole for weight in weights.values())))(weights)


def in_multiples(rule: Rule, multiple: int) -> Rule:
    """The ranks of a rule in whole multiples, or full ones: products of other sizes fill no vector registers.

    The rule sees so many ranks as one. A weight of which not even one multiple is smaller stays whole. Raises
    InputError for a multiple below 1.
    """
    if multiple < 1:
        raise InputError(f"the multiple {multiple} is below 1", "give one such as 8")

    def ranks(weight: Candidate, units: Ranks) -> Ranks:
        return tuple(min(unit * multiple, len(energy)) for unit, energy in zip(units, weight.energies, strict=True))

    def grouped(weight: Candidate) -> Candidate:
        energies = tuple(np.add.reduceat(each, np.arange(0, len(each), multiple)) for each in weight.energies)
        return Candidate(energies, lambda units: weight.size(ranks(weight, units)), weight.whole)

    def made(weights: Mapping[str, Candidate]) -> dict[str, Ranks]:
        found = rule({name: grouped(weight) for name, weight in weights.items()})
        return {name: ranks(weights[name], units) for name, units in found.items()}

    return made


def explicit(ranks: Mapping[str, int | Ranks]) -> Rule:
    """{pattern: rank}: the first pattern that a weight's name matches (re.search) gives its rank; others stay whole.

    A convolution in three factors takes a pair of ranks (inputs, outputs), or one number for both. The rule raises
    InputError for a pattern that matches nothing, and for a rank that is not from 1 to the full one.
    """
    for pattern in ranks:
        require_regular(pattern)

    def rule(weights: Mapping[str, Candidate]) -> dict[str, Ranks]:
        for pattern in ranks:
            if not any(re.search(pattern, name) for name in weights):
                some = ", ".join(list(weights)[:4])
                raise InputError(f"the pattern {pattern!r} matches none of the chosen weights", f"they are: {some}")
        given = {name: next((p for p in ranks if re.search(p, name)), None) for name in weights}
        return {name: _checked(name, weights[name], ranks[p]) for name, p in given.items() if p is not None}

    return rule


def _checked(name: str, weight: Candidate, given: int | Ranks) -> Ranks:
    full = tuple(len(energy) for energy in weight.energies)
    ranks = given if isinstance(given, tuple) else (given,) * len(full)
    if len(ranks) != len(full):
        raise InputError(f"{name} takes {len(full)} rank(s), not {len(ranks)}", "give one number for all of them")
    for rank, most in zip(ranks, full, strict=True):
        if not 1 <= rank <= most:
            raise InputError(f"rank {rank} of {name} is not from 1 to its full rank {most}", f"give at most {most}")
    return ranks


def spread(weights: Mapping[str, Candidate], room: int) -> dict[str, Ranks]:
    """Ranks from 1 up while parameters are left: each time the step that saves the most error for a parameter.

    Errors are relative to each weight. A step that would make the factors as large as the weight gives it back whole.
    """
    ranks = {name: weight.least for name, weight in weights.items()}
    while steps := [step for name in ranks for step in _steps(name, weights[name], ranks[name], room)]:
        best = max(steps, key=lambda step: step.saved / step.cost)
        room -= best.cost
        if best.ranks is None:
            del ranks[best.name]
        else:
            ranks[best.name] = best.ranks
    return ranks


class _Step(NamedTuple):
    """What a weight's next ranks (None: whole) save in relative error, and what they cost in parameters."""

    name: str
    ranks: Ranks | None
    saved: float
    cost: int


def _steps(name: str, weight: Candidate, ranks: Ranks, room: int) -> list[_Step]:
    """The steps that this weight can take, that fit, and that save anything."""
    found = []
    for mode, energy in enumerate(weight.energies):
        if ranks[mode] == len(energy):
            continue
        more = tuple(rank + (at == mode) for at, rank in enumerate(ranks))
        if weight.is_smaller(more):
            saved = float(energy[ranks[mode]] / (np.sum(energy) or 1))
            found.append(_Step(name, more, saved, weight.size(more) - weight.size(ranks)))
        else:
            found.append(_Step(name, None, weight.lost(ranks), weight.whole - weight.size(ranks)))
    return [step for step in found if step.cost <= room and step.saved > 0]
