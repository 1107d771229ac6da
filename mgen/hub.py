"""Runs on the Hugging Face hub: downloaded by name, pushed as a folder. Code is never fetched."""

import os
import re
from pathlib import Path

from mgen.config import InputError

FILES = ["*.json", "*.yaml", "*.safetensors", "*.md", "*.txt"]  # what a run may consist of


def is_hub_id(name: str) -> bool:
    """Whether a name has the form USER/NAME and is no folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def download(name: str, revision: str = "main") -> Path:
    """The folder of a run of the hub in the local cache. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except (OSError, HTTPError, HFValidationError) as error:
        raise InputError(
            f"{name} (revision {revision}): no such folder, and the Hugging Face hub does not give "
            f"it: {_reason(error)}. Check the name; a private one needs `hf auth login`; without a "
            "network, copy the folder here and give its path"
        ) from None


def check_push(name: str) -> None:
    """Raise InputError if nothing can be pushed to USER/NAME from here."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {name}: {_reason(error)}") from None
    if name.count("/") != 1:
        raise InputError(f"--push-to-hub {name}: expected USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push-to-hub: HF_HUB_OFFLINE is set, which forbids to reach the hub")
    if not get_token():
        raise InputError(
            "--push-to-hub: not logged in. Make a token with write access at "
            f"{constants.ENDPOINT}/settings/tokens, then run `hf auth login` or set HF_TOKEN"
        )


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a run folder and return its address. Raises InputError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private or None, exist_ok=True))
        message = "Upload a run of mgen"
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, allow_patterns=FILES
        )
    except (OSError, HTTPError, ValueError) as error:  # ValueError: of the card's head
        raise InputError(
            f"--push-to-hub {name}: {_reason(error)}. {folder} is complete; once the hub can be "
            f"reached and the token may write there: `hf upload {name} {os.fspath(folder)}`"
        ) from None
    return address


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
