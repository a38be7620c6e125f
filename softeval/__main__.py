"""`python -m softeval`, as torchrun wants it: ``torchrun -m softeval run ...``."""

from softeval.cli import main

main()
