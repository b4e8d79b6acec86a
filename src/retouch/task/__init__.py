"""The task of an edit, shared by Retouch and the baselines: examples, layers, validation."""
