"""The dependency graph of a model's channels, read off its program: which entries of which arrays go together.

Fang et al. 2023, DepGraph, https://arxiv.org/abs/2301.12900. A channel is whatever must be removed together: an output
of a kernel, its bias and norm, and what every later kernel makes of it; through residual additions, flattening,
concatenation and depthwise convolutions. Channels that lie in the same dimensions of the same arrays are a group.
"""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from lepton_jax import tree
from lepton_jax.compress import programs, propagation
from lepton_jax.compress.ties import Labels, Product, Ties
from lepton_jax.errors import InputError
from lepton_jax.types import Model, Variables

Kept = dict[str, tuple[Bool[np.ndarray, "..."], ...]]
"""For every weight and statistic by name, per dimension of the original array which entries stay."""


class Member(NamedTuple):
    """A dimension of a leaf in which channels of a group lie. role: "output", "input" or "along"."""

    name: str
    dimension: int
    role: str


class Group(NamedTuple):
    """Channels that lie in the same dimensions. channels: their numbers, int [size]; fixed: why they stay, or ""."""

    channels: Int[np.ndarray, "size"]
    members: tuple[Member, ...]
    fixed: str

    @property
    def producers(self) -> list[str]:
        """The kernels whose outputs these are."""
        return [member.name for member in self.members if member.role == "output"]


class Graph(NamedTuple):
    """leaves: by name, per dimension the channel of each entry, int [size], or None for a rigid dimension.

    The number of channels stands for what is no channel of a leaf. products: what is multiplied, in these numbers.
    channels: how many there are.
    """

    leaves: dict[str, tuple[Any, ...]]
    shapes: dict[str, tuple[int, ...]]
    groups: tuple[Group, ...]
    products: tuple[Product, ...]
    channels: int

    def kept(self, keep: Bool[np.ndarray, "channels"]) -> Kept:
        """Which entries stay where these channels do."""
        keep = np.append(keep, True)
        return {
            name: tuple(
                np.ones(size, bool) if own is None else keep[own]
                for own, size in zip(self.leaves[name], shape, strict=True)
            )
            for name, shape in self.shapes.items()
        }

    def macs(self, keep: Bool[np.ndarray, "channels"]) -> int:
        """Multiply-accumulates of one evaluation of the inputs at these widths; see `programs.macs`."""
        keep = np.append(keep, True)
        return sum(
            product.constant * int(np.prod([np.count_nonzero(keep[own]) for own in product.dimensions], dtype=np.int64))
            for product in self.products
        )

    def of(self, pattern: str) -> list[Group]:
        """The groups made by weights whose names match (re.search).

        Raises InputError where nothing matches, and where channels that match cannot be removed, saying which
        operation is in the way.
        """
        found = [group for group in self.groups if any(re.search(pattern, name) for name in group.producers)]
        if not found:
            some = ", ".join(sorted({name for group in self.groups for name in group.producers})[:4])
            raise InputError(f"the pattern {pattern!r} matches no weight with channels", f"weights are like: {some}")
        for group in found:
            if group.fixed:
                problem = f"the channels of {group.producers[0]} cannot be removed: {group.fixed}"
                raise InputError(problem, "leave this weight out of the pattern")
        return found

    @property
    def free(self) -> list[Group]:
        """The groups whose channels can be removed."""
        return [group for group in self.groups if not group.fixed]


def named_variables(variables: Variables) -> list[tuple[str, Any]]:
    """(name inside its collection, leaf) in tree order: `stem/norm/scale`, `stem/norm/mean`.

    Raises InputError where two collections have the same name.
    """
    found = jax.tree_util.tree_leaves_with_path(variables)
    pairs = [(tree.path_name(path[1:]), leaf) for path, leaf in found]
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two collections have a leaf {min(twice)!r}", "give one of them another name")
    return pairs


def graph(model: Model, variables: Variables, inputs: Any) -> Graph:
    """The dependency graph of a model in evaluation of `inputs`; arrays or shapes, nothing is computed.

    The outputs' and inputs' channels are fixed, and so are those that an operation runs over in another way than
    multiplying and adding up: a layer norm's, a softmax's, what is gathered, sorted, scanned.
    """
    traced, shape = jax.make_jaxpr(lambda v, x: model.apply(v, x, False, None), return_shape=True)(variables, inputs)
    program, ties = programs.flattened(traced), Ties()
    named = named_variables(variables)
    labels = {name: ties.fresh(leaf.shape) for name, leaf in named}
    rigid = [(None,) * len(leaf.shape) for leaf in jax.tree.leaves(inputs)]
    arguments = [*labels.values(), *rigid]
    values, _ = propagation.follow(ties, program, arguments, [False] * len(labels) + [True] * len(rigid))
    for number in program.results[: len(jax.tree.leaves(shape[0]))]:
        for nodes in values[number]:
            ties.fix(nodes, "they are the model's outputs")
    return _grouped(ties, labels, {name: tuple(leaf.shape) for name, leaf in named})


def _grouped(ties: Ties, labels: dict[str, Labels], shapes: dict[str, tuple[int, ...]]) -> Graph:
    """The components of what is tied, numbered as channels of leaves."""
    components = ties.components()
    homes: dict[int, list[tuple[str, int]]] = {}
    for name, own in labels.items():
        for dimension, nodes in enumerate(own):
            for component in [] if nodes is None else np.unique(components[nodes]).tolist():
                homes.setdefault(component, []).append((name, dimension))
    number = np.full(len(components) + 1, len(homes))
    number[list(homes)] = np.arange(len(homes))
    reasons = reasons_of(ties, components)
    alike: dict[Any, list[int]] = {}
    for component, home in homes.items():
        alike.setdefault((tuple(home), reasons.get(component, "")), []).append(component)
    roles = _roles(ties)
    groups = [
        _group(labels, roles, home, number[np.array(members)], reason) for (home, reason), members in alike.items()
    ]
    made = tuple(group for group in groups if group.producers)
    leaves = {
        name: tuple(None if nodes is None else number[components[nodes]] for nodes in own)
        for name, own in labels.items()
    }
    products = [Product(constant, tuple(number[components[nodes]] for nodes in own)) for constant, own in ties.products]
    return Graph(leaves, shapes, made, tuple(products), len(homes))


def reasons_of(ties: Ties, components: np.ndarray) -> dict[int, str]:
    """For each component that is fixed why, by the first operation that says so."""
    reasons: dict[int, str] = {}
    for nodes, reason in ties.fixed:
        for component in np.unique(components[nodes]).tolist():
            reasons.setdefault(component, reason)
    return reasons


def _roles(ties: Ties) -> np.ndarray:
    """Of each node what it is to the weight that it belongs to: 0 nothing, 1 an input, 2 an output."""
    roles = np.zeros(ties.count, int)
    for nodes, role in ties.roles:
        roles[nodes] = np.maximum(roles[nodes], {"input": 1, "output": 2}[role])
    return roles


def _group(labels: dict[str, Labels], roles: np.ndarray, home: Any, channels: np.ndarray, reason: str) -> Group:
    members = []
    for name, dimension in home:
        nodes = labels[name][dimension]
        assert nodes is not None
        members.append(Member(name, dimension, ("along", "input", "output")[roles[nodes].max()]))
    return Group(channels, tuple(members), reason)
