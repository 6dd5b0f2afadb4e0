"""The reader study (paper IV-D): its design, the local server and page, the export and the analysis."""
