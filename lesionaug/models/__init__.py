"""Architectures and losses of the paper."""
