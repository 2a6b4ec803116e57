"""The numbers of an evaluation: runner, statistics, summary, cost."""
