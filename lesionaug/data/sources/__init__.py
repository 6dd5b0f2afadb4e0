"""Every way lesions come in: one file for each format, each handing on `Margin`s or slices (data/slices.py)."""
