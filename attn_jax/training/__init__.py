"""Training: state, step, loop, checkpoints, and the records of a run."""
