"""Statistics, runner and report."""
