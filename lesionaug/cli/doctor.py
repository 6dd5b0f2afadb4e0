"""`lesionaug doctor`: what was built, what runs here, and whether the kernels are right."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter


def doctor(*, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False) -> int:
    """Say what was built and what runs here, and check the kernels against references.

    Exits with 4 when something is broken.

    Args:
        as_json: Print JSON, for an issue report or a script.
    """
    from lesionaug.environment import doctor as examine

    diagnosis = examine()
    print(json.dumps(diagnosis.as_dict(), indent=1) if as_json else diagnosis)
    return 0 if diagnosis.ok else 4


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(doctor)
