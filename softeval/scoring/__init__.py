"""Answers judged: the rules, and the worker processes in which they run."""
