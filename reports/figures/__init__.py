"""Figures of the report, drawn with matplotlib: arrays of statistics in, `Figure` objects out."""
