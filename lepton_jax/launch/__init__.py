"""Many processes, started, watched and started again from outside: `python -m lepton_jax.launch --processes 2 -- ...`

A process that is stuck in a collective cannot notice it, and one that dies takes the others along in C++. So what
watches them is a program of its own, which needs nothing but the standard library and never starts JAX. See
docs/launch.md.
"""
