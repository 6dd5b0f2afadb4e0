"""The paper's experiment: groups, runs, figures, report."""
