"""Proof: what an artifact is, whether it is intact, what a run saw, and that it can be repeated."""
