"""Published data sets, and those simulated for the package."""
