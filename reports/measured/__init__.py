"""Run directories as a report measures them: read, reduced, gathered into arms, scored."""
