"""How rounds are held."""

from typing import NamedTuple

from lepton_jax.errors import InputError
from lepton_jax.federation.health import HEARTBEAT

LONGEST = 60.0  # seconds of a heartbeat: connections that are silent for longer than two of them are closed


class Terms(NamedTuple):
    """How rounds are held.

    quorum: clients without whom a round is none. deadline: seconds of a round. gather: seconds that a round waits for
    those who are away before it begins without them. cohort: clients of a round; None for all who are here. secure:
    sums in which no single update can be seen. heartbeat: seconds between signs of life.
    """

    quorum: int
    deadline: float = 600.0
    gather: float = 60.0
    cohort: int | None = None
    secure: bool = False
    heartbeat: float = HEARTBEAT

    def check(self, clients: int) -> None:
        """Raise InputError for terms that no round of so many clients can meet."""
        for name in ("deadline", "gather", "heartbeat"):
            if not 0 < getattr(self, name) < 1e9:
                raise InputError(
                    f"--{name} {getattr(self, name)} is not a number of seconds above 0", f"leave --{name} out"
                )
        if self.heartbeat > LONGEST:
            raise InputError(f"--heartbeat {self.heartbeat} is above {LONGEST:g} seconds", "5 is usual")
        most = clients if self.cohort is None else self.cohort
        if not 1 <= most <= clients:
            raise InputError(f"--cohort {most} is not between 1 and the job's {clients} clients", "leave --cohort out")
        if not 1 <= self.quorum <= most:
            raise InputError(
                f"--quorum {self.quorum} is not between 1 and the {most} clients of a round", f"give {most}"
            )
        if self.secure and (self.quorum < 2 or self.quorum <= most // 2):
            problem = (
                f"--quorum {self.quorum} is not more than half of the {most} clients of a secure sum, and at least 2"
            )
            raise InputError(problem, f"with fewer the coordinator could unmask a client: give {max(2, most // 2 + 1)}")
