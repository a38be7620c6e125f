r"""Reading an answer as LaTeX tokens, giving it a form, and comparing forms.

`tokens` cuts text into a tree, `normal_form` writes the tree in one way only, `reading` says what kind
of answer it is (`forms`: number with unit, list, interval, equation, time, ...), `comparison` says
when two forms are the same answer; `formula` reads what is left into SymPy, and `scalars` and
`relations` compare it. Runs inside a scoring worker, under its limits.
"""

RULES = "3"
"""Version of the rules, part of every run's record: raised with every change of a verdict."""
