"""What a server of processes imports before it forks; nothing here starts JAX."""

import importlib

from benchmarks.injected import PRELOADED

for name in PRELOADED:
    importlib.import_module(name)
