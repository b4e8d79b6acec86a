"""Representations: batches, hidden states, log-probabilities, discriminators, losses, patching."""
