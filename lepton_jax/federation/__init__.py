"""Federated training between machines: a coordinator, its clients, and an encrypted way between them.

`python -m lepton_jax.federated certificates | serve | join`; see docs/federation.md.
"""
