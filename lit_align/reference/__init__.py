"""Log-probs of the reference, computed once and stored."""
