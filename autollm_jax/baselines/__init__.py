"""One file per method, one shared interface."""
