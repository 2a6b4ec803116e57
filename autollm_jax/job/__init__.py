"""The job: its config, its work directory and its stages."""
