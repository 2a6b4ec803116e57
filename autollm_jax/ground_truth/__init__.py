"""This project's own outcome tables: one module per task turns sweeps into a table."""
