"""Where Kamado keeps what it keeps. Imports next to nothing: every command asks."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """`KAMADO_HOME`, else the user's data folder of this platform."""
    told = os.environ.get("KAMADO_HOME")
    if told:
        return Path(told).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("kamado", appauthor=False))
