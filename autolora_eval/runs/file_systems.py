"""The file system behind a URL, by fsspec."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autolora_eval._errors import UsageError, first_line
from autolora_eval._files import atomic_write

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)


def is_url(text: str) -> bool:
    """Return whether a text is a URL rather than a path."""
    return _URL.fullmatch(text) is not None


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the folder on it.

    Raises:
        UsageError: if the URL has a password, or its protocol is unknown or not installed.
    """
    import fsspec

    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            f"the URL '{shown}' has a password, '?' or '#' in it. Leave it out: credentials are "
            "taken from the environment, as the library of the protocol reads them."
        )
    is_place = (parts.netloc + parts.path).strip("/") and "::" not in url
    if not is_place or parts.scheme in ("http", "https"):
        raise UsageError(
            f"'{url}' cannot hold a run folder. Expected PROTOCOL://PLACE/FOLDER, such as "
            "s3://bucket/runs/mine, of a protocol that can be written."
        )
    if parts.scheme == "s3" and importlib.util.find_spec("s3fs") is None:
        return _s3_of_arrow(parts.netloc), f"{parts.netloc}{parts.path}".rstrip("/")
    if parts.scheme in ("file", "local"):
        disk = _disk()
        return disk, disk._strip_protocol(url)
    try:
        found, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"'{url}' cannot be used: {first_line(error)}") from error
    return found, str(root).rstrip("/")


def _disk() -> Any:  # noqa: ANN401
    """Return the file system of this machine. It does not follow links."""
    from fsspec.implementations.local import LocalFileSystem

    class Disk(LocalFileSystem):
        def find(self, path: str, **options: object) -> dict[str, dict[str, Any]]:
            below = (Path(at, name) for at, inner, files in os.walk(path) for name in inner + files)
            return {
                str(path): {"islink": True} if path.is_symlink() else self.info(str(path))
                for path in below
                if path.is_symlink() or path.is_file()
            }

        def put_file(self, lpath: str, rpath: str, **options: object) -> None:
            with atomic_write(Path(rpath)) as temporary:
                shutil.copyfile(lpath, temporary)

    return Disk()


def _s3_of_arrow(bucket: str) -> Any:  # noqa: ANN401
    """Return pyarrow's file system for S3, or for a compatible server at `AWS_ENDPOINT_URL`."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    class S3(ArrowFSWrapper):
        cachable = False  # the environment may change

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            """An object store has no folders."""

        def find(self, path: str, **options: object) -> dict[str, Any]:
            """List a thousand files per request, not one folder."""
            below = fs.FileSelector(path, recursive=True, allow_not_found=True)
            return {i.path: self._make_entry(i) for i in self.fs.get_file_info(below) if i.is_file}

    named = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
    s3, any_service, region, default_region = map(os.environ.get, named)
    endpoint = urlsplit(s3 or any_service or "https:")
    where = region or default_region
    if not where and not endpoint.netloc:
        where = fs.resolve_s3_region(bucket)
    return S3(
        fs.S3FileSystem(
            endpoint_override=endpoint.netloc or None,
            scheme=endpoint.scheme,
            region=where,
            connect_timeout=10,
            request_timeout=60,
            allow_delayed_open=True,  # a small file is one request, not three
        )
    )
