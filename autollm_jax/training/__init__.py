"""Train state, step, loop, and sweeps that train many configurations at once."""
