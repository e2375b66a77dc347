"""The parts of a run: step, state, checkpoint, metrics, evaluation."""
