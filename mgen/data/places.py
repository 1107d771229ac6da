"""Where a path of the settings is on this machine."""

import os
from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_PREFIX = "bundled:"  # so that a saved config does not hold where mgen is installed
SHARED_PREFIX = "shared:"  # files below $MGEN_SHARED/data, likewise


def local_file(path: str) -> Path:
    """Where a path is on this machine."""
    if path.startswith(BUNDLED_PREFIX):
        return BUNDLED / path.removeprefix(BUNDLED_PREFIX)
    if path.startswith(SHARED_PREFIX):
        return shared_folder() / path.removeprefix(SHARED_PREFIX)
    return Path(path).expanduser()


def shared_folder() -> Path:
    """$MGEN_SHARED/data: data sets under the names of `mgen list data`, as their owners give them.

    Without the variable, `shared` beside the repository.
    """
    beside = Path(__file__).parents[2].parent / "shared"
    return Path(os.environ.get("MGEN_SHARED") or beside).expanduser() / "data"
