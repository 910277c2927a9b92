"""Places in object storage, as far as guidance stores need them: `s3://bucket/prefix`, `gs://…`, `az://…`.

Credentials, region and endpoint come from the environment, under the names of each provider's own tools
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from pipeline.errors import InputError

PATIENCE = timedelta(seconds=20)
"""How long a request is tried again: less than a lock lasts of whose holder nothing is heard (leases.py)."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or all objects below a prefix. It answers to the names of `pathlib.Path` that stores use.

    A folder is there when something lies in it; nothing has to be made before an object is written, and an
    object is written whole or not at all.
    """

    url: str

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> ObjectPath:
        """Everything before the last part."""
        return ObjectPath(self.url.rstrip("/").rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """The neighbour of that name."""
        return self.parent / name

    def joinpath(self, *names: str) -> ObjectPath:
        """The place below."""
        return self / "/".join(names)

    def relative_to(self, folder: ObjectPath) -> str:
        """The part after `folder`."""
        return self.url.removeprefix(f"{folder.url}/")

    def absolute(self) -> ObjectPath:
        """The same: a URL means the same everywhere."""
        return self

    def exists(self) -> bool:
        """Whether there is such an object, or one below."""
        return self.is_file() or bool(self.below())

    def is_file(self) -> bool:
        """Whether there is such an object."""
        with reachable(self):
            try:
                self._bucket.head(self._key)
            except FileNotFoundError:
                return False
            return True

    def below(self) -> list[ObjectPath]:
        """All objects below, in the order of their names."""
        with reachable(self):
            listed = [entry for page in self._bucket.list(f"{self._key}/") for entry in page]
        root = self.url[: len(self.url) - len(self._key)]
        return sorted(ObjectPath(root + str(entry["path"])) for entry in listed)

    def read_bytes(self) -> bytes:
        """What the object holds. Raises FileNotFoundError."""
        with reachable(self):
            return bytes(self._bucket.get(self._key).bytes())

    def read_text(self, encoding: str = "utf-8") -> str:
        """What the object holds, as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: Literal["rb"] = "rb", buffering: int = 0) -> BinaryIO:
        """A file to read and seek in, of which only what is read is fetched."""
        import obstore

        with reachable(self):
            return cast(BinaryIO, _Opened(obstore.open_reader(self._bucket, self._key)))

    def write_bytes(self, content: bytes) -> None:
        """Put the object, replacing what was there."""
        with reachable(self):
            self._bucket.put(self._key, content)

    def put_if(self, content: bytes, known: str | None) -> str | None:
        """Put the object if it is as it was (None: not there); its new tag, or None when it was not."""
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        with reachable(self):
            try:
                mode: Any = {"e_tag": known} if known else "create"
                return cast(
                    str, self._bucket.put(self._key, content, mode=mode, use_multipart=False)["e_tag"]
                )
            except (AlreadyExistsError, PreconditionError, NotFoundError):
                return None

    def tag(self) -> str | None:
        """What changes with every write of the object; None when it is not there."""
        with reachable(self):
            try:
                return cast(str, self._bucket.head(self._key)["e_tag"])
            except FileNotFoundError:
                return None

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        with reachable(self):
            try:
                self._bucket.delete(self._key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove_tree(self) -> None:
        """Remove everything below, the description of a store first: without it there is no store."""
        for one in sorted(self.below(), key=lambda one: one != self / "zarr.json"):
            one.unlink(missing_ok=True)

    def copy_tree(self, target: ObjectPath) -> None:
        """Copy everything below, the description of the store last."""
        for one in sorted(self.below(), key=lambda one: one == self / "zarr.json"):
            with reachable(self):
                self._bucket.copy(one._key, (target / one.relative_to(self))._key)

    @property
    def folder_store(self) -> Any:
        """An obstore store of everything below."""
        return _connected(self.url)

    @property
    def _bucket(self) -> Any:
        scheme, _, rest = self.url.partition("://")
        return _connected(f"{scheme}://{rest.partition('/')[0]}")

    @property
    def _key(self) -> str:
        return self.url.partition("://")[2].partition("/")[2]


Place: TypeAlias = Path | ObjectPath
"""Where a store may lie."""


class _Opened(io.RawIOBase):
    """An object that is read in parts."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def read(self, size: int = -1) -> bytes:
        return bytes(self._reader.read(size))


@lru_cache(maxsize=64)
def _connected(url: str) -> Any:
    from obstore.store import from_url

    try:
        return from_url(url, retry_config={"retry_timeout": PATIENCE})
    except Exception as error:
        from obstore.exceptions import BaseError

        if not isinstance(error, BaseError | ValueError):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{url}: not a place in object storage ({reason}); use s3://bucket/prefix"
        ) from error


@contextmanager
def reachable(path: object) -> Iterator[None]:
    """Turn a storage that refuses or does not answer into an InputError that names the place."""
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except NotFoundError as error:
        raise FileNotFoundError(f"{path}: no such object") from error
    except BaseError as error:
        reason = " ".join(str(error).partition("Debug source:")[0].split())
        raise InputError(
            f"{path}: the storage refused or does not answer ({reason}); check its URL and credentials and "
            "run again: what is finished is kept"
        ) from error


def connection(path: Place) -> AbstractContextManager[None]:
    """`reachable` for object storage, nothing for a disk."""
    return reachable(path) if isinstance(path, ObjectPath) else nullcontext()
