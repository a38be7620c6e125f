"""Evaluations on disk: what is asked for, its journal and tables, and everything that reads them."""
