"""Experiments on lit-align's claim that the sign of (score - 0.5) tells the better source of pairs. See README.md."""
