"""What a training step is: modules, optimizer, schedules, checkpoints, and what keeps a step whole."""
