"""Concepts from an instruction: the contrast set is made by the model itself."""
