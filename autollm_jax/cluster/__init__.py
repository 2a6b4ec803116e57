"""Several processes as one job: how they meet, wait for each other, and stop."""
