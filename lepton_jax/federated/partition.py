"""Who holds which examples: partitions of a data set among clients, as arrays of positions, in rising order.

Each is a pure function of its arguments. Every example has one owner, and every client has at least one example.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lepton_jax.data.stream import permutation
from lepton_jax.errors import InputError, unknown
from lepton_jax.federated.sampling import numbers, uniform

Partition = list[Int[np.ndarray, "_"]]
"""The examples of each client."""


def iid(examples: int, clients: int, seed: int) -> Partition:
    """Each client a random part, all as large up to one. Raises InputError for more clients than examples."""
    _require(examples, clients)
    return [np.sort(part) for part in np.array_split(permutation(examples, seed, 0), clients)]


def dirichlet(
    labels: Int[np.ndarray, " examples"], clients: int, concentration: float, seed: int, least: int = 1
) -> Partition:
    """The examples of each class by shares from a Dirichlet distribution: 0.1 is very uneven, 100 nearly even.

    Drawn again until every client has `least` examples, a hundred times at most. Hsu et al. 2019,
    https://arxiv.org/abs/1909.06335; in the form of Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022, which
    draws shares of clients by class. Raises InputError for a concentration that is not positive, and where a hundred
    draws leave some client with less.
    """
    if not 0 < concentration < math.inf:
        problem = f"the concentration {concentration} of the Dirichlet distribution is not positive and finite"
        raise InputError(problem, "0.1 is very uneven, 1 uneven, 100 nearly even")
    _require(len(labels), clients * max(least, 1), clients)
    names = np.unique(labels)
    for draw in range(100):
        owners = np.empty(len(labels), np.int64)
        for place, name in enumerate(names):
            rows = np.flatnonzero(labels == name)
            rows = rows[np.argsort(numbers(seed, "dirichlet order", draw, place, len(rows)), kind="stable")]
            shares = _dirichlet(uniform(seed, "dirichlet", draw, place, clients), concentration)
            bounds = np.round(np.cumsum(shares)[:-1] * len(rows))
            owners[rows] = np.searchsorted(bounds, np.arange(len(rows)), side="right")
        if np.bincount(owners, minlength=clients).min() >= least:
            return _by_owner(owners, clients)
    problem = f"a hundred draws at the concentration {concentration} left some of {clients} clients without examples"
    raise InputError(problem, "raise the concentration, or take fewer clients")


def shards(labels: Int[np.ndarray, " examples"], clients: int, each: int, seed: int) -> Partition:
    """The examples by class, cut into shards, of which every client gets `each` at random: few classes per client.

    McMahan et al. 2017, https://arxiv.org/abs/1602.05629 (two shards each). Raises InputError for more shards than
    examples.
    """
    if each < 1:
        raise InputError(f"{each} shards for each client hold nothing", "2 is usual")
    _require(len(labels), clients * each, clients)
    ordered = np.argsort(labels, kind="stable").astype(np.int32)
    pieces = np.array_split(ordered, clients * each)
    dealt = permutation(len(pieces), seed, 0).reshape(clients, each)
    return [np.sort(np.concatenate([pieces[number] for number in hand])) for hand in dealt]


def natural(column: Sequence[object] | np.ndarray) -> Partition:
    """The examples by who they are of: one client for each value of a column (writer, hospital, device), in order.

    Raises InputError for an empty column.
    """
    values, owners = np.unique(np.asarray(column), return_inverse=True)
    _require(len(owners), max(len(values), 1))
    return _by_owner(owners, len(values))


def held(
    partition: Partition, labels: Int[np.ndarray, " examples"], classes: int
) -> Int[np.ndarray, "clients classes"]:
    """How many examples of each class each client holds."""
    return np.stack([np.bincount(labels[rows], minlength=classes) for rows in partition])


def parse(text: str) -> tuple[str, float]:
    """`iid`, `dirichlet:0.3`, `shards:2` -> (kind, number), 0 where there is none. Raises InputError."""
    kind, _, number = text.partition(":")
    if kind not in ("iid", "dirichlet", "shards"):
        raise unknown("partition", kind, ("iid", "dirichlet", "shards", "natural:FIELD", "even:FIELD"))
    try:
        value = float(number or {"iid": 0, "dirichlet": 0.3, "shards": 2}[kind])
    except ValueError:
        value = math.nan
    if math.isnan(value) or (kind == "iid" and number) or (kind == "shards" and value != int(value)):
        raise InputError(f"the partition {text!r} does not parse", "write iid, dirichlet:0.3 or shards:2")
    return kind, value


def field(text: str) -> str | None:
    """The field that `natural:FIELD` and `even:FIELD` name; None for another partition. Raises InputError for none."""
    kind, _, name = text.partition(":")
    if kind not in ("natural", "even"):
        return None
    if not name:
        raise InputError(f"the partition {text!r} names no field", f"write {kind}:writer, if that is the field's name")
    return name


def by_field(text: str, owners: Int[np.ndarray, " examples"], seed: int) -> Partition:
    """The partition that `natural:FIELD` names, of whose each example is; for `even:FIELD` as many IID clients."""
    clients = natural(owners)
    return iid(len(owners), len(clients), seed) if text.startswith("even:") else clients


def build(text: str, labels: Int[np.ndarray, " examples"], clients: int, seed: int) -> Partition:
    """The partition that a text names, see `parse`. Raises InputError."""
    kind, number = parse(text)
    if kind == "iid":
        return iid(len(labels), clients, seed)
    return (
        dirichlet(labels, clients, number, seed) if kind == "dirichlet" else shards(labels, clients, int(number), seed)
    )


def _by_owner(owners: np.ndarray, clients: int) -> Partition:
    order = np.argsort(owners, kind="stable").astype(np.int32)
    return np.split(order, np.cumsum(np.bincount(owners, minlength=clients))[:-1])


def _dirichlet(uniform: np.ndarray, concentration: float) -> np.ndarray:
    """Shares from a symmetric Dirichlet distribution, by the quantiles of gamma variates, from a number for each."""
    from scipy.special import gammaincinv, gammaln

    uniform = np.maximum(uniform, 2.0**-54)
    with np.errstate(divide="ignore", under="ignore"):
        direct = np.log(gammaincinv(concentration, uniform))
    # near zero the distribution is a power, and so small that only its logarithm can be held
    small = (np.log(uniform) + gammaln(concentration + 1)) / concentration
    logarithms = np.where(small < -40, small, direct)
    shares = np.exp(logarithms - logarithms.max())
    return shares / shares.sum()


def _require(examples: int, parts: int, clients: int | None = None) -> None:
    clients = parts if clients is None else clients
    if clients < 1:
        raise InputError(f"a data set cannot be parted among {clients} clients", "give at least 1")
    if parts > examples:
        problem = f"{examples} examples are too few for {clients} clients"
        raise InputError(problem if parts == clients else f"{problem} in {parts} parts", "take fewer clients")
