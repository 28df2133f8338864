"""Files on servers, read in parts: a bounded cache of blocks, and errors that say what to do."""

from __future__ import annotations

import io
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
from fsspec.core import url_to_fs

from atlas_wsi.errors import (
    AtlasError,
    UnreachableSlideError,
    UnreadableSlideError,
    UnsupportedFormatError,
)
from atlas_wsi.slides.cache import TileCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

COPY_HINT = "Copy the file to a disk first: `aws s3 cp`, `gcloud storage cp` or `curl -O`."
_BLOCK_BYTES = 256 * 2**10
_CACHE_BYTES = 64 * 2**20
_CACHED_BLOCKS = 4
_WAITS_S = (0.2, 1.0, 4.0)
_CONNECT_S, _READ_S = 10, 60
_CLIENTS = frozenset({"aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "requests"})
_S3, _GS = ("s3", "s3a"), ("gs", "gcs")
_HINTS = {
    **dict.fromkeys(
        _S3,
        "Credentials are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or "
        "the machine's role; for a public bucket set FSSPEC_S3='{\"anon\": true}'. The server is "
        "AWS_ENDPOINT_URL.",
    ),
    **dict.fromkeys(
        _GS,
        "Credentials are taken from GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth "
        'application-default login`; for a public bucket set FSSPEC_GS=\'{"token": "anon"}\'.',
    ),
}


def is_url(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


def storage_options(url: str) -> dict[str, Any]:
    """Return the options of fsspec beside the user's own configuration."""
    if not url.lower().startswith("http"):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
    return {"client_kwargs": {"timeout": timeout}}


def explain(error: Exception, url: str) -> AtlasError | None:
    """Turn what a client of a server raised into an error the user can act on."""
    place = without_query(url)
    scheme = urlsplit(url).scheme.lower()
    if isinstance(error, ImportError):
        return UnsupportedFormatError(
            f"{place}: {scheme} needs a package that is not installed: {error}.",
            hint=f"pip install 'atlas-wsi[cloud]' or 'fsspec[{scheme}]'",
        )
    chain = list(_chain(error))
    status = next((code for code in map(_status, chain) if code), None)
    names = {type(link).__name__ for link in chain}
    if (
        status in (401, 403)
        or names & {"PermissionError"}
        or any("Credentials" in n for n in names)
    ):
        return UnreachableSlideError(
            f"{place} may not be read: {_text(error)}.",
            hint=_HINTS.get(scheme, "Check what the server asks for."),
        )
    is_missing = isinstance(error, FileNotFoundError)
    if is_missing and (status == 404 or not any(_is_from_client(link) for link in chain[1:])):
        return UnreadableSlideError(f"{place} does not exist.", hint="Check the address.")
    if is_missing and names & {"NoSuchKey", "NoSuchBucket"}:
        return UnreadableSlideError(f"{place} does not exist: {_text(error)}.")
    if not any(_is_from_client(link) for link in chain):
        return None
    server = "the server" if scheme not in _S3 else "the server (AWS_ENDPOINT_URL)"
    return UnreachableSlideError(
        f"{place} cannot be read from its server: {_text(chain[-1])}.",
        hint=f"Check {server} and the network, then run the same command again.",
    )


def without_query(url: str) -> str:
    """Return a URL as it may be shown: what follows ``?`` may be a signature."""
    return url.partition("?")[0]


class RemoteBytes:
    """Random reads of a file on a server; blocks are fetched once and shared by threads."""

    def __init__(self, url: str, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self.path = without_query(url)
        self._url = url
        self._cache = TileCache(cache_bytes)
        self._is_closed = False
        try:
            self._files, self._name = url_to_fs(url, **storage_options(url))
            facts = self._file_facts()
            self.size = int(facts.get("size") or 0)
            self._check_ranges(facts)
        except AtlasError:
            raise
        except Exception as error:
            raise explain(error, url) or error from error

    def _file_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._files.info(self._name)
        if facts.get("type") == "directory":
            raise FileNotFoundError(self._url)
        return facts

    def _check_ranges(self, facts: dict[str, Any]) -> None:
        """Refuse a web server that answers every request with the whole file."""
        if self._files.protocol[0] != "http" or (facts.get("size") == 0):
            return
        is_served = facts.get("size") is not None and facts.get("partial", True)
        if is_served and self.size > 1:
            try:
                with self._files.open(self._name, cache_type="none", size=self.size) as file:
                    file.seek(self.size - 1)
                    file.read(1)
            except ValueError:
                is_served = False
        if not is_served:
            raise UnsupportedFormatError(
                f"{self.path}: the server does not serve parts of a file.", hint=COPY_HINT
            )

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read bytes."""
        if self._is_closed:
            raise ValueError(f"{self.path} is closed.")
        missing = offset + n_bytes - self.size
        if missing > 0:
            raise UnreadableSlideError(
                f"{self.path} ends {missing} bytes before a block at byte {offset} does: the file "
                "is truncated."
            )
        first, last = offset // _BLOCK_BYTES, (offset + n_bytes - 1) // _BLOCK_BYTES
        if last - first >= _CACHED_BLOCKS:  # it would push out what others need, for one use
            return self._fetch(offset, n_bytes).tobytes()
        blocks = [self._block(index) for index in range(first, last + 1)]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        begin = offset - first * _BLOCK_BYTES
        return joined[begin : begin + n_bytes].tobytes()

    def _block(self, index: int) -> NDArray[np.uint8]:
        offset = index * _BLOCK_BYTES
        n_bytes = min(_BLOCK_BYTES, self.size - offset)
        return self._cache.fetch(index, partial(self._fetch, offset, n_bytes))

    def _fetch(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """Ask the server, and again if it fails: a slide takes thousands of requests."""
        for wait_s in (*_WAITS_S, None):
            try:
                found = self._files.cat_file(self._name, start=offset, end=offset + n_bytes)
                break
            except Exception as error:
                explained = explain(error, self._url) or error
                if wait_s is None or not _may_pass(error):
                    raise explained from error
            time.sleep(wait_s)
        if len(found) != n_bytes:
            raise UnreachableSlideError(
                f"{self.path}: the server sent {len(found)} bytes from byte {offset}, expected "
                f"{n_bytes}: the file may have been replaced while it was read.",
                hint="Run the same command again.",
            )
        return np.frombuffer(found, np.uint8)

    def close(self) -> None:
        """Forget what was fetched."""
        self._is_closed = True
        self._cache.clear()


class RemoteFile(io.RawIOBase):
    """A file object over `RemoteBytes`, for libraries that read directories of a file."""

    def __init__(self, source: RemoteBytes) -> None:
        self.name = source.path
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it has positions."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into memory."""
        view = memoryview(buffer).cast("B")
        n_bytes = max(0, min(len(view), self._source.size - self._position))
        if n_bytes:
            view[:n_bytes] = self._source.read(self._position, n_bytes)
            self._position += n_bytes
        return n_bytes


def gdal_options(url: str) -> dict[str, str]:
    """Return GDAL's settings for a server, where they differ from the environment's."""
    options = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MAX_RETRY": str(len(_WAITS_S)),
        "GDAL_HTTP_RETRY_DELAY": str(_WAITS_S[0]),
        "GDAL_HTTP_CONNECTTIMEOUT": str(_CONNECT_S),
    }
    if urlsplit(url).scheme.lower() not in _S3:
        return options
    settings = fsspec.config.conf.get("s3", {})
    if settings.get("anon"):
        options["AWS_NO_SIGN_REQUEST"] = "YES"
    endpoint = (
        settings.get("endpoint_url")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    if endpoint:
        parts = urlsplit(endpoint)
        options["AWS_S3_ENDPOINT"] = parts.netloc + parts.path.rstrip("/")
        options["AWS_HTTPS"] = "NO" if parts.scheme == "http" else "YES"
        options["AWS_VIRTUAL_HOSTING"] = "FALSE"
    return options


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_from_client(error: BaseException) -> bool:
    """Whether a server, or the way to it, is behind an error; s3fs raises bare OSError."""
    return (
        type(error).__module__.partition(".")[0] in _CLIENTS
        or isinstance(error, (PermissionError, ConnectionError, TimeoutError))
        or type(error) is OSError
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of aiohttp, botocore or gcsfs carries."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", status)
    try:
        return int(status) if status is not None else None
    except (TypeError, ValueError):
        return None


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    status = next((code for code in map(_status, _chain(error)) if code), None)
    return status is None or status in (408, 429) or status >= 500


def _text(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
