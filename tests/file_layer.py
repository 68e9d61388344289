"""A layer between this process and one folder: every call that changes the folder passes a watcher.

The calls are those by which our code writes: ``os`` (open, write, fsync, rename, ...), Python's own files
(``open``, ``Path.write_bytes``), and the statements of SQLite. What SQLite does within one statement is
its own; ``crash_images`` says what a crash there may leave.
"""

from __future__ import annotations

import builtins
import fcntl
import functools
import io
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock
from urllib.parse import unquote, urlsplit

BY_PATH = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "truncate", "link", "symlink")
BY_HANDLE = ("ftruncate", "fsync", "fdatasync")
STATEMENTS = ("BEGIN", "INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT", "ROLLBACK", "PRAGMA")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One change that is about to be made.

    Attributes:
        name: of the system call, ``create`` for an open that makes a file, or ``sql COMMIT`` and the like.
        path: the file or folder.
        data: what a write brings, from byte ``offset`` on.
    """

    name: str
    path: Path
    data: bytes = b""
    offset: int = 0


class Watcher(Protocol):
    """Told of each call; what it raises before a call, the caller meets in its place."""

    def before(self, call: Call) -> None: ...
    def after(self, call: Call, *, durable: bool) -> None:
        """``durable``: a transaction has ended, and SQLite was told to sync it."""


class Layer:
    """The calls of this process that change something below ``root``, while ``under`` lasts."""

    def __init__(self, root: Path, watcher: Watcher) -> None:
        self._root = root.resolve()
        self._watcher = watcher

    @contextmanager
    def under(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in BY_PATH:
                self._put(stack, os, name, self._by_path(name, getattr(os, name)))
            for name in BY_HANDLE:
                self._put(stack, os, name, self._by_handle(name, getattr(os, name)))
            self._put(stack, os, "open", self._os_open(os.open))
            self._put(stack, os, "write", self._write(os.write))
            self._put(stack, os, "pwrite", self._pwrite(os.pwrite))
            opens = self._python_open(io.open)
            self._put(stack, io, "open", opens)
            self._put(stack, builtins, "open", opens)
            self._put(stack, sqlite3, "connect", self._connect(sqlite3.connect))
            yield

    @staticmethod
    def _put(stack: ExitStack, where: Any, name: str, what: Any) -> None:
        stack.enter_context(mock.patch.object(where, name, what))

    def _inside(self, path: Any, dir_fd: int | None = None) -> Path | None:
        if isinstance(path, int):
            return self._inside(os.readlink(f"/proc/self/fd/{path}"))
        base = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
        found = Path(os.path.normpath(os.path.join(base, os.fsdecode(path))))
        return found if found == self._root or self._root in found.parents else None

    def _passed(self, call: Call, act: Any) -> Any:
        self._watcher.before(call)
        result = act()
        self._watcher.after(call, durable=False)
        return result

    def _by_path(self, name: str, real: Any) -> Any:
        @functools.wraps(real)
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            place = self._inside(path, kwargs.get("dir_fd", kwargs.get("src_dir_fd")))
            act = functools.partial(real, path, *args, **kwargs)
            return act() if place is None else self._passed(Call(name=name, path=place), act)

        return call

    def _by_handle(self, name: str, real: Any) -> Any:
        @functools.wraps(real)
        def call(handle: Any, *args: Any) -> Any:
            place = self._inside(handle if isinstance(handle, int) else handle.fileno())
            act = functools.partial(real, handle, *args)
            return act() if place is None else self._passed(Call(name=name, path=place), act)

        return call

    def _os_open(self, real: Any) -> Any:
        @functools.wraps(real)
        def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
            place = self._inside(path, kwargs.get("dir_fd"))
            act = functools.partial(real, path, flags, *args, **kwargs)
            if place is None or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return act()
            name = "open" if place.exists() else "create"
            return self._passed(Call(name=name, path=place), act)

        return call

    def _write(self, real: Any) -> Any:
        @functools.wraps(real)
        def call(handle: int, data: Any) -> Any:
            place = self._inside(handle)
            act = functools.partial(real, handle, data)
            if place is None:
                return act()
            appends = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND
            offset = os.lseek(handle, 0, os.SEEK_CUR)
            if appends:
                offset = os.fstat(handle).st_size
            return self._passed(
                Call(name="write", path=place, data=bytes(data), offset=offset), act
            )

        return call

    def _pwrite(self, real: Any) -> Any:
        @functools.wraps(real)
        def call(handle: int, data: Any, offset: int) -> Any:
            place = self._inside(handle)
            act = functools.partial(real, handle, data, offset)
            if place is None:
                return act()
            return self._passed(
                Call(name="write", path=place, data=bytes(data), offset=offset), act
            )

        return call

    def _python_open(self, real: Any) -> Any:
        """Python's ``open`` on a raw file whose writes are seen."""
        layer = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                place = layer._inside(self.fileno())
                act = functools.partial(super().write, data)
                if place is None:
                    return act()
                end = os.fstat(self.fileno()).st_size
                offset = end if "a" in self.mode else self.tell()
                return layer._passed(
                    Call(name="write", path=place, data=bytes(data), offset=offset), act
                )

        @functools.wraps(real)
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            place = layer._inside(file)
            if place is None or not set(mode) & set("wax+"):
                return real(file, mode, *args, **kwargs)
            assert "+" not in mode, "the layer knows plain writers only"
            letters = mode.replace("b", "").replace("t", "")
            act = functools.partial(Raw, file, letters)
            if isinstance(file, int):
                raw = act()
            else:
                name = "open" if place.exists() and "w" not in mode else "create"
                raw = layer._passed(Call(name=name, path=place), act)
            buffered = io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            encoding = kwargs.get("encoding") or (args[1] if len(args) > 1 else "utf-8")
            return io.TextIOWrapper(buffered, encoding=encoding, write_through=False)

        return call

    def _connect(self, real: Any) -> Any:
        watcher = self._watcher

        @functools.wraps(real)
        def call(database: Any, *args: Any, **kwargs: Any) -> Any:
            place = self._inside(unquote(urlsplit(os.fspath(database)).path))
            if place is None:
                return real(database, *args, **kwargs)

            class Watched(sqlite3.Connection):
                def execute(self, sql: str, *args: Any) -> Any:
                    word = sql.split(maxsplit=1)[0].upper()
                    if word not in STATEMENTS:
                        return super().execute(sql, *args)
                    passing = Call(name=f"sql {word}", path=place)
                    watcher.before(passing)
                    result = super().execute(sql, *args)
                    if word == "PRAGMA":
                        result.fetchall()  # it ends with its last row
                    watcher.after(passing, durable=not self.in_transaction and self._synced())
                    return result

                def close(self) -> None:
                    passing = Call(name="sql close", path=place)
                    watcher.before(passing)
                    super().close()
                    watcher.after(passing, durable=True)

                def _synced(self) -> bool:
                    """A commit is on the disk when it returns: only so does SQLite promise it."""
                    (mode,) = super().execute("PRAGMA journal_mode").fetchone()
                    (level,) = super().execute("PRAGMA synchronous").fetchone()
                    return (mode, level >= 2) == ("wal", True)

            return real(database, *args, factory=Watched, **kwargs)

        return call
