"""The report: page, curves and maps."""
