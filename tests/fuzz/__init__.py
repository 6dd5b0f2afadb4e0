"""Fuzz targets over everything that reads files of others; see README.md."""
