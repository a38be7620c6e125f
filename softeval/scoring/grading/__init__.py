r"""Reading an answer as LaTeX tokens, giving it a form, and comparing forms.

`tokens` cuts text into a tree, `normal_form` writes the tree in one way only, `forms` says what kind
of answer it is (number with unit, list, interval, equation, time, ...), `comparison` says when two
forms are the same answer and `scalars` hands what is left to math-verify's reader and SymPy. Runs
inside a scoring worker, under its limits.
"""

RULES = "3"
"""Version of the rules, part of every run's record: raised with every change of a verdict."""
