"""Metrics on images and predictions."""
