"""Trains the guard's injection model: `python -m tools.train_guard` from the repository's root."""
