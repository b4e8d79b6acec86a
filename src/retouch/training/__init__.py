"""Adversarial training: dataset, objective, trainer, adversaries and checkpoints."""
