"""Measurements, side by side where there is a peer: `python -m benchmarks.NAME`. RESULTS.md holds what they gave."""
