"""How channels run through a program: for every dimension of every array, which node each of its entries is.

Entries that stand or fall together are tied, and what is tied is one channel. A dimension without nodes is rigid: it
keeps its size. Whatever runs over channels in another way than adding up products fixes them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Nodes = np.ndarray | None
"""For each entry of a dimension its node, int [size]; None for a rigid one."""
Labels = tuple[Nodes, ...]
"""One per dimension."""


class Product(NamedTuple):
    """A convolution or matrix product: its multiply-accumulates are `constant` times the sizes of `dimensions`."""

    constant: int
    dimensions: tuple[np.ndarray, ...]


class Ties:
    """What is tied to what, what is fixed and why, and which entries weights take in or give out."""

    def __init__(self) -> None:
        self.count = 0
        self.edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.roles: list[tuple[np.ndarray, str]] = []
        self.products: list[Product] = []

    def new(self, size: int) -> Nodes:
        """Nodes of their own for a dimension; one of a single entry is rigid."""
        if size == 1:
            return None
        self.count += size
        return np.arange(self.count - size, self.count)

    def fresh(self, shape: Sequence[int]) -> Labels:
        """Nodes of their own for every dimension."""
        return tuple(self.new(size) for size in shape)

    def fix(self, nodes: Nodes, reason: str) -> None:
        """These entries stay."""
        if nodes is not None:
            self.fixed.append((np.ravel(nodes), reason))

    def same(self, first: np.ndarray, other: np.ndarray) -> None:
        """Ties entry to entry; the arrays broadcast to each other."""
        pair = np.broadcast_arrays(first, other)
        self.edges.append((pair[0].ravel(), pair[1].ravel()))

    def tie(self, name: str, *dimensions: Nodes) -> Nodes:
        """Dimensions of one size as one; beside a rigid one the others are fixed. name: of the primitive."""
        known = [nodes for nodes in dimensions if nodes is not None]
        if not known:
            return None
        for other in known[1:]:
            self.same(known[0], other)
        if len(known) < len(dimensions):
            self.fix(known[0], f"{name} ties them to a dimension of fixed size")
        return known[0]

    def components(self) -> np.ndarray:
        """For each node the number of its channel, int [count]."""
        pairs = [(np.zeros(0, int), np.zeros(0, int)), *self.edges]
        first, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
        links = coo_array((np.ones(len(first), bool), (first, other)), shape=(self.count, self.count))
        return connected_components(links, directed=False)[1] if self.count else np.zeros(0, int)


class Use(NamedTuple):
    """An operation as a rule sees it. varying: whether an operand depends on the model's inputs."""

    equation: Any
    labels: list[Labels]
    varying: list[bool]

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's parameters."""
        return self.equation.params

    @property
    def before(self) -> list[tuple[int, ...]]:
        """Shapes of the operands."""
        return [tuple(var.aval.shape) for var in self.equation.invars]

    @property
    def after(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        return [tuple(var.aval.shape) for var in self.equation.outvars]
