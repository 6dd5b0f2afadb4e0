"""`python -m lesionaug` is the command line."""

from __future__ import annotations

from lesionaug.cli import main

main()
