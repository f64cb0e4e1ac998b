"""Data files at an http(s) address: fetched once into the cache, and asked about again by their ETag.

    <cache>/downloads/<hash of the address>/train.jsonl
    <cache>/downloads/<hash of the address>/about.json      address, ETag, date, SHA-256, size

A server that answers "not modified" costs one request. With `HF_HUB_OFFLINE` or `HF_DATASETS_OFFLINE` set nothing is
asked. Where the server cannot be reached the file that is there is used, and a note says of when it is. A file whose
SHA-256 is no longer the stored one is fetched again. Nothing is unpacked here but `.gz`, which the loaders do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.data.places import cache_folder
from aligntune.errors import ValidationError

TIMEOUT = 30.0
"""Seconds without an answer after which a server counts as not reachable."""


def is_url(name: str) -> bool:
    """Whether a source's name is an http(s) address."""
    return name.lower().startswith(("http://", "https://"))


def offline() -> bool:
    """Whether the environment says to stay offline, in the words of the Hugging Face libraries."""
    words = ("1", "true", "yes", "on")
    return any(os.environ.get(key, "").lower() in words for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def download(url: str, cache_dir: str | None = None) -> tuple[Path, list[str]]:
    """The file at an address, and sentences about where it came from.

    Args:
        url: http or https, to a file with the ending of its kind.
        cache_dir: the cache's folder; None takes the usual one.

    Raises:
        ValidationError: the address names no file, or the server refuses it.
        errors.EnvironmentError: it cannot be reached and is not in the cache.
    """
    name = urllib.parse.unquote(Path(urllib.parse.urlsplit(url).path).name)
    if not name or name.startswith("."):
        raise ValidationError(f"{url} names no file", hint="give the address of a data file, such as .../train.jsonl")
    folder = cache_folder(cache_dir) / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:24]
    file, about = folder / name, _about(folder)
    there = file.is_file() and about.get("sha256") == _sha256(file)
    if offline():
        if there:
            return file, [f"{url}: the file of {about['date']} in the cache (offline)."]
        raise errors.EnvironmentError(
            f"{url} is not in the cache and the environment says to stay offline",
            hint="run once with HF_HUB_OFFLINE and HF_DATASETS_OFFLINE unset, which keeps it, or name a local file",
        )
    try:
        fetched = _fetch(url, folder, name, about if there else {})
    except urllib.error.HTTPError as error:
        raise ValidationError(
            f"{url}: the server answers {error.code} ({error.reason})", hint="check the address in a browser"
        ) from error
    except OSError as error:  # URLError, time-outs and broken connections are kinds of it
        reason = getattr(error, "reason", error)
        if there:
            return file, [f"{url} cannot be reached ({reason}); the file of {about['date']} in the cache is used."]
        raise errors.EnvironmentError(
            f"{url} cannot be reached ({reason})", hint="check the address and the network, or name a local file"
        ) from error
    if fetched is None:
        return file, [f"{url}: unchanged since {about['date']} (in the cache)."]
    return file, [f"{url}: fetched, {fetched['size']} bytes, SHA-256 {fetched['sha256'][:12]}."]


def _fetch(url: str, folder: Path, name: str, about: dict[str, Any]) -> dict[str, Any] | None:
    """Fetch the file unless the server says that it is unchanged (None)."""
    from aligntune.utils.files import write_json

    request = urllib.request.Request(url, headers={"User-Agent": "aligntune"})  # noqa: S310 - is_url has checked it
    if about.get("etag"):
        request.add_header("If-None-Match", about["etag"])
    elif about.get("modified"):
        request.add_header("If-Modified-Since", about["modified"])
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        if error.code == 304:
            return None
        raise
    folder.mkdir(parents=True, exist_ok=True)
    with answer, tempfile.NamedTemporaryFile(dir=folder, prefix=".part-", delete=False) as part:
        try:
            shutil.copyfileobj(answer, part, 1 << 20)
            part.flush()
            size, wanted = part.tell(), answer.headers.get("Content-Length")
            if wanted is not None and int(wanted) != size:
                raise ConnectionError(f"{size} of {wanted} bytes came")
            stored = {
                "url": url,
                "etag": answer.headers.get("ETag"),
                "modified": answer.headers.get("Last-Modified"),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "sha256": _sha256(Path(part.name)),
                "size": size,
            }
            os.replace(part.name, folder / name)
        finally:
            Path(part.name).unlink(missing_ok=True)  # nothing, where it stands in its place
    write_json(folder / "about.json", stored)
    return stored


def _about(folder: Path) -> dict[str, Any]:
    try:
        stored = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
