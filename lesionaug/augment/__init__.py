"""A plan (who, how) and its execution; batches for training loops."""
