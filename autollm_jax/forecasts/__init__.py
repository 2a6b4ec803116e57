"""Forecasts: what a configuration will bring, from evidence and trials."""
