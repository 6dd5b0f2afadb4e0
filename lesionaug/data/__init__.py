"""Slices and margins in, ROIs out; folds; phantoms; the ROI store."""
