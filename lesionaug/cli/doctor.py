"""`lesionaug doctor`: what was built, what runs here, and whether the kernels are right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cyclopts


def register(app: cyclopts.App) -> None:
    """Add the command."""
    app.command(doctor)


def doctor(*, as_json: bool = False) -> int:
    """Say what was built and what runs here, and check the kernels against references.

    Parameters
    ----------
    as_json
        Print JSON, for an issue report or a script.
    """
    from lesionaug.environment import doctor as examine

    diagnosis = examine()
    print(json.dumps(diagnosis.as_dict(), indent=1) if as_json else diagnosis)
    return 0 if diagnosis.ok else 4
