"""How the batches of a stream are drawn: what the privacy of a run depends on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Drawing:
    """How batches are drawn of so many examples (in a federated run, clients).

    kind: "shuffled" epochs, "poisson" for each example by itself, "fixed" for anew in each batch without replacement.
    batch: the expected number. rows: room for how many. bands: an example takes part in one of so many batches only,
    each time with so many times the probability.
    """

    kind: str
    examples: int
    batch: float
    rows: int
    bands: int = 1

    def __str__(self) -> str:
        """In words, such as "Poisson batches of 100 of 1000 in 152 rows"."""
        what = f"batches of {self.batch:g} of {self.examples}"
        if self.kind != "poisson":
            return f"{self.kind} {what}"
        return f"Poisson {what} in {self.rows} rows" + (f", one in {self.bands}" if self.bands > 1 else "")
