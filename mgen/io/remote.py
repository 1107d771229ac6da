"""Files elsewhere, by URL: fetched whole, once per content, into the cache (through fsspec)."""

import errno
import hashlib
import json
import re
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

from mgen.config import Absent, InputError
from mgen.io.files import cache_folder, kept

PACKAGES = {  # by protocol, where fsspec alone does not do
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}
LOGINS = {
    "hf": "run 'hf auth login' and accept the terms on the page of the data set",
    **dict.fromkeys(("s3", "s3a"), "run 'aws configure', or set AWS_ACCESS_KEY_ID and so on"),
    **dict.fromkeys(("gs", "gcs"), "run 'gcloud auth application-default login'"),
}
# What servers and fsspec say of a content: names in lower case. The size alone does not tell.
SAYS_CONTENT = {"etag", "content-md5", "digest", "last-modified", "lastmodified", "mtime"}
SAYS_CONTENT |= {"updated", "created", "generation", "md5hash", "blob_id", "versionid"}


def is_remote(path: str) -> bool:
    return "://" in path


def remote_files(url: str) -> list[str]:
    """The URLs that a URL with wildcards names, sorted, where a server lists its files.

    Raises InputError if there are none. Other URLs are returned as they are.
    """
    from fsspec.utils import get_protocol

    if get_protocol(url) in ("http", "https") or not any(sign in url for sign in "*?["):
        return [url]  # web servers list no files, and ? begins the query
    try:
        system, path = _system(url)
        found = sorted(system.unstrip_protocol(name) for name in system.glob(path))
    except Exception as error:  # of whatever package serves the protocol
        raise _problem(url, error) from error
    if not found:
        raise InputError(f"{url}: no file has such a name")
    return found


def fetched(url: str) -> Path:
    """The local copy of a remote file, made unless there is one of this content.

    Raises InputError if it cannot be had.
    """
    try:
        system, path = _system(url)
        info = system.info(path)
    except Exception as error:
        raise _problem(url, error) from error
    if info["type"] == "directory":
        raise InputError(f"{url}: a folder. Name a file, or several: {url.rstrip('/')}/*.csv")
    known = {key: str(value) for key, value in info.items() if key.lower() in SAYS_CONTENT}
    size = info.get("size")
    facts = json.dumps([url, size, known], sort_keys=True)
    key = hashlib.sha256(facts.encode()).hexdigest()[:32]
    name = f"{key}_{PurePosixPath(without_query(url)).name[-100:]}"  # the suffix says the format
    copy = cache_folder() / "downloads" / name
    if copy.exists() and not known:
        warnings.warn(
            f"{url}: the server does not say whether it has changed. Delete {copy} to fetch it "
            "again.",
            stacklevel=2,
        )

    def write(target: Path) -> None:
        try:
            system.get_file(path, str(target))
        except Exception as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # of the cache
            raise _problem(url, error) from error
        if size is not None and target.stat().st_size != size:
            raise InputError(f"{url}: {target.stat().st_size:,} of {size:,} bytes came. Try again.")

    return kept("downloads", name, write)


def without_query(url: str) -> str:
    """A URL up to its query: what says the format of the file."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def _system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    if "::" in url:
        raise InputError(f"{url}: protocols joined by '::' are not read. Fetch and unpack it first")
    return url_to_fs(url)


def _problem(url: str, error: Exception) -> InputError:
    """What to say of an error and what to do about it."""
    if isinstance(error, InputError):
        return error
    protocol = url.partition("://")[0]
    if isinstance(error, ImportError):
        package = PACKAGES.get(protocol, "")
        advice = f"pip install {package}" if package else str(error)
        return InputError(f"{url}: '{protocol}://' needs a package: {advice}")
    cause = error.__cause__ or error
    said = f"{type(cause).__name__}: {cause}".splitlines()[0]
    if isinstance(error, ValueError) and "Protocol not known" in said:
        return InputError(f"{url}: no protocol '{protocol}' is known")
    words = said.lower().replace(url.lower(), "")
    refused = r"\b40[13]\b|forbidden|unauthorized|gated|credential"
    if isinstance(cause, PermissionError) or re.search(refused, words):
        login = LOGINS.get(protocol, "fetch it in a browser and give --data.path the file")
        return InputError(f"{url}: needs a login ({said}): {login}")
    if isinstance(cause, FileNotFoundError) or re.search(r"\b404\b", words) or "not found" in words:
        return InputError(f"{url}: no such file ({said}). Check the address")
    return Absent(
        f"{url}: cannot be reached ({said}). Check the connection, or fetch it elsewhere and give "
        "--data.path the file"
    )
