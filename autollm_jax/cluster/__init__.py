"""Runs one job in several processes: rendezvous, waiting, pre-emption."""
