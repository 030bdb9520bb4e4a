"""Experiments on lit-align's claim: the sign of (score - 0.5) tells which source of pairs pays. See README.md."""
