"""Training: modules, optimizer, schedules, checkpoints, and the guards of a training step."""
