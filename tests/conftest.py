"""Shared by all tests: fixtures' folders, and no network."""

import os
import socket
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ["OMP_NUM_THREADS"] = "1"  # on these sizes more threads only get in each other's way

import pytest

ROOT = Path(__file__).resolve().parent.parent


def golden(name: str) -> Path:
    """Folder of a golden fixture under $MGEN_GOLDEN (default tests/golden).

    A folder given by the variable may lack fixtures, and tests of those are skipped; ours may not.
    """
    given = os.environ.get("MGEN_GOLDEN")
    folder = Path(given or ROOT / "tests" / "golden") / name
    if given and not folder.exists():
        pytest.skip(f"$MGEN_GOLDEN has no {name}")
    assert folder.exists(), f"{folder} is missing"
    return folder


@pytest.fixture
def shared() -> Path:
    """Folder of other people's data and weights, $MGEN_SHARED (default ../shared)."""
    folder = Path(os.environ.get("MGEN_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs data that is not part of the repository: no folder {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache."""
    os.environ["MGEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond this machine fail, except in tests marked `network`."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: tuple | str) -> None:
        is_local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert is_local, f"test tried to reach {address}; mark it 'network' if it must"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
