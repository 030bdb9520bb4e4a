"""`lit-align doctor`: checks that what lit-align computes on this machine is right and fast, with random models."""
