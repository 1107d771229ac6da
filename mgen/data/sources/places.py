"""Where a path of the settings is on this machine."""

import re
from pathlib import Path

from mgen.config import nearest
from mgen.io.files import shared_file, shared_folder
from mgen.io.remote import fetched, is_remote

BUNDLED = Path(__file__).parents[1] / "named" / "bundled"
BUNDLED_PREFIX = "bundled:"  # so that a saved config does not hold where mgen is installed
HUB_PREFIX = "hf://datasets/"


def local_file(path: str) -> Path:
    """Where a path is on this machine; what a URL names is fetched, unless the cache has it."""
    if is_remote(path):
        return fetched(path)
    if path.startswith(BUNDLED_PREFIX):
        return BUNDLED / path.removeprefix(BUNDLED_PREFIX)
    return shared_file(path)


def hub_folder(name: str) -> Path | None:
    """The folder owner/name or owner__name of $MGEN_SHARED/data: a hub data set without network."""
    folders = (shared_folder() / name, shared_folder() / name.replace("/", "__"))
    return next((folder for folder in folders if "/" in name and folder.is_dir()), None)


def hub_copy(url: str) -> Path | None:
    """The file of a hub data set's URL in the folder that stands for that data set."""
    found = re.match(rf"{HUB_PREFIX}([^/]+/[^/@]+)(@[^/]+)?/(.+)", url)
    folder = found and hub_folder(found[1])
    return folder / found[3] if folder else None


def neighbour(place: Path) -> str:
    """What is missing on the way to a place: its folder, or a file of nearly that name."""
    if not place.parent.is_dir():
        return f" There is no folder {place.parent}."
    return nearest(place.name, [file.name for file in place.parent.iterdir()])
