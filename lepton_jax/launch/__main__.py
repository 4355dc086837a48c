"""Several processes on one mesh, watched and started again.

python -m lepton_jax.launch --processes 2 -- python -m experiments.resnet --mesh 8x1
"""

import sys
from collections.abc import Sequence

from lepton_jax import cli
from lepton_jax.launch.settings import parse
from lepton_jax.launch.supervisor import supervise


def main(arguments: Sequence[str]) -> int:
    """Launch what the arguments say: the exit code, one of `errors.Exit`."""
    code = 0

    def act() -> None:
        nonlocal code
        code = supervise(parse(arguments))

    return cli.guarded(act) or code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
