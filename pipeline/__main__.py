"""`python -m pipeline` is `overtile`."""

from pipeline.cli import main

main()
