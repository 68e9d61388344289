"""What a crash at any moment leaves of a folder: images of it, taken at every change (``file_layer``).

A process that is killed leaves all that it wrote. A machine that loses its power may also lose what was
not synced: bytes of a file that no fsync followed, names that no fsync of their folder followed; or one of
the two. So each moment has four images, and two more in the middle of a write: half of it. SQLite's own
sync discipline is trusted: what it committed with ``synchronous=FULL`` stays; what a commit was writing
when the crash came is cut at each page of its log, or of its file, and in the middle of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from file_layer import Call, Layer

PAGE = 4096
WAL_HEADER, FRAME = 32, 24 + PAGE
Tree = dict[str, bytes | None]
"""What lies below a folder: bytes of a file, None for a folder."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One image; ``notes`` are what the process had said to the world by then."""

    moment: str
    loses: str
    notes: tuple[bytes, ...]
    tree: Tree

    def __str__(self) -> str:
        return f"a crash {self.moment}, which loses {self.loses}"

    def laid_out(self, folder: Path) -> Path:
        """The image as a folder, for a new process to find."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.tree.items():
            place = folder / name
            if content is None:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.write_bytes(content)
        return folder


class Images:
    """Takes the images of one folder, whose present state counts as durable.

    Attributes:
        calls: every change that passed.
        unseen: calls before which the folder had changed without any: the layer has a hole.
        crashes: the images; what a new process could not tell apart is there once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._notes: tuple[bytes, ...] = ()
        self._held: dict[int, int] = {}  # an open handle each: no number of a file is used twice
        self._folders: set[int] = set()
        self._data: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._seen: set[object] = set()
        self._wal = b""
        self._last: Tree = {}
        self._before: Tree = {}
        self.unseen: list[Call] = []
        self.calls: list[Call] = []
        self.crashes: list[Crash] = []
        for folder, _, _ in os.walk(self._root):
            self._sync(Path(folder))
            for place in _entries(Path(folder)).values():
                self._hold(place)
                if place.is_file():
                    self._sync(place)

    @contextmanager
    def taken(self) -> Iterator[Images]:
        """Every change in the block is seen; the end of the block is a moment too."""
        try:
            with Layer(self._root, self).under():
                yield self
            self._take("the end")
        finally:
            for handle in self._held.values():
                os.close(handle)

    def note(self, said: bytes) -> None:
        """From now on the world knows ``said``; at this very moment too everything may end."""
        self._notes += (said,)
        self._take("something left")

    def before(self, call: Call) -> None:
        self.calls.append(call)
        tree = self._take(f"before {len(self.calls)} {call.name} {self._name(call.path)}")
        if self._last and _known(tree) != _known(self._last):
            self.unseen.append(call)
        if call.data:
            name = self._name(call.path)
            old = tree.get(name) or b""
            start = old[: call.offset].ljust(call.offset, b"\0")
            for cut in (len(call.data) // 8, len(call.data) // 2):
                torn = tree | {name: start + call.data[:cut] + old[call.offset + cut :]}
                self._add(f"within {len(self.calls)} write {name} at {cut}", "nothing", torn)
        if call.name.startswith("sql"):
            self._wal, self._before = _read(_wal(call.path)), tree

    def after(self, call: Call, *, durable: bool) -> None:
        if call.name in ("fsync", "fdatasync"):
            self._sync(call.path)
        if call.name == "sql close":
            self._tear_pages(call)
        elif call.name.startswith("sql"):
            self._tear_log(call)
        if durable:
            folder = call.path.parent
            for name, place in _entries(folder).items():
                if name.startswith(call.path.name):
                    self._hold(place)
                    self._sync(place)
                    self._names.setdefault(folder.stat().st_ino, {})[name] = place.stat().st_ino
        self._last = self._tree(data=True, names=True)

    def _tear_log(self, call: Call) -> None:
        """A commit of which the log has only so much."""
        now, name = _read(_wal(call.path)), self._name(_wal(call.path))
        if now == self._wal:
            return
        tree = self._tree(data=True, names=True)
        ends = range(WAL_HEADER, len(now), FRAME)
        for cut in (WAL_HEADER // 2, *ends, *(end + FRAME // 2 for end in ends)):
            if now[:cut] != self._wal[:cut]:
                torn = tree | {name: now[:cut] + self._wal[cut:]}
                self._add(f"within {len(self.calls)} {call.name} at {cut}", "nothing", torn)

    def _tear_pages(self, call: Call) -> None:
        """The last to close writes what the log holds into the file, and then throws the log away."""
        name = self._name(call.path)
        now, old = _content(self._held[self._hold(call.path)]), self._before[name] or b""
        for cut in range(PAGE // 2, len(now), PAGE // 2):
            if now[:cut] != old[:cut]:
                torn = self._before | {name: now[:cut] + old[cut:]}
                self._add(f"within {len(self.calls)} {call.name} at {cut}", "nothing", torn)

    def _take(self, moment: str) -> Tree:
        kept = self._tree(data=True, names=True)
        self._add(moment, "nothing", kept)
        self._add(moment, "data", self._tree(data=False, names=True))
        self._add(moment, "names", self._tree(data=True, names=False))
        self._add(moment, "data and names", self._tree(data=False, names=False))
        return kept

    def _add(self, moment: str, loses: str, tree: Tree) -> None:
        """Take the image in, unless a new process would find the very same as at an earlier one."""
        key = (self._notes, tuple(sorted(tree.items(), key=lambda item: item[0])))
        if key not in self._seen:
            self._seen.add(key)
            self.crashes.append(Crash(moment=moment, loses=loses, notes=self._notes, tree=tree))

    def _tree(self, *, data: bool, names: bool) -> Tree:
        tree: Tree = {}
        waiting = [("", self._root.stat().st_ino)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, number in self._children(prefix, folder, names=names).items():
                if number in self._folders:
                    tree[prefix + name] = None
                    waiting.append((f"{prefix}{name}/", number))
                else:
                    tree[prefix + name] = (
                        _content(self._held[number]) if data else self._data.get(number, b"")
                    )
        return tree

    def _children(self, prefix: str, folder: int, *, names: bool) -> dict[str, int]:
        if not names:
            return self._names.get(folder, {})
        return {name: self._hold(place) for name, place in _entries(self._root / prefix).items()}

    def _sync(self, place: Path) -> None:
        """What is at ``place`` now stays."""
        number = self._hold(place)
        if number in self._folders:
            self._names[number] = {n: self._hold(p) for n, p in _entries(place).items()}
        else:
            self._data[number] = _content(self._held[number])

    def _hold(self, place: Path) -> int:
        number = place.stat().st_ino
        if number not in self._held:
            self._held[number] = _open(place, os.O_RDONLY)
            if place.is_dir():
                self._folders.add(number)
        return number

    def _name(self, place: Path) -> str:
        return str(place.relative_to(self._root))


_open = os.open


def _entries(folder: Path) -> dict[str, Path]:
    """Files and folders; SQLite's shared memory is made anew by whoever comes first."""
    found = {entry.name: Path(entry.path) for entry in os.scandir(folder)}
    return {
        name: place
        for name, place in found.items()
        if not name.endswith("-shm") and (place.is_dir() or place.is_file())
    }


def _known(tree: Tree) -> Tree:
    """Without what SQLite makes when it first reads: a log that is empty."""
    return {name: content for name, content in tree.items() if content or content is None}


def _content(handle: int) -> bytes:
    return os.pread(handle, os.fstat(handle).st_size, 0)


def _wal(database: Path) -> Path:
    return database.with_name(database.name + "-wal")


def _read(place: Path) -> bytes:
    return place.read_bytes() if place.exists() else b""
