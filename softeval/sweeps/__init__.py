"""Many trainings asked for by one file: a grid of cells, each a chain of ordinary commands."""
