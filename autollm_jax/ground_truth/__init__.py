"""Makes the project's own outcome tables: a plan of runs per task, their training, the table."""
