"""Retouch and the baselines that it is compared with, behind one interface."""
