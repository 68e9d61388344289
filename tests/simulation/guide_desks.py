"""A party of a federation at its desk: where the lines of a guide are typed, and what stands for its names.

A desk is a folder that stands for a machine: relative paths are files on it, and an absolute path of a guide
(``/srv/oncofed``) lies in it. Words that a guide leaves to its reader (``FINGERPRINT``) come from a table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from guide_lines import Line

from oncofed_common.processes import end, load_marks
from oncofed_simulation.processes import Supervisor

PATIENCE_S = 300.0
LOOK_EVERY_S = 0.1
RECORD = "processes.json"
"""Beside the desks: what is kept running on all of them."""
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "LANG": "C.UTF-8",
    "COLUMNS": "200",  # a table is as wide as its longest row
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Desk:
    """One party, its folder, what it puts in for the words of a guide, and what it keeps running."""

    root: Path
    children: Supervisor
    words: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)

    @property
    def name(self) -> str:
        return self.root.name

    def place(self, path: str) -> Path:
        """Where a path of the guide lies."""
        return self.root / path.lstrip("/")

    def write(self, path: str, text: str) -> None:
        """Put a file on the desk."""
        self.place(path).parent.mkdir(parents=True, exist_ok=True)
        self.place(path).write_text(text, encoding="utf-8")

    def send(self, path: str, to: Desk, name: str) -> None:
        """Hand a file or folder to another party, as people do."""
        if self.place(path).is_dir():
            shutil.copytree(self.place(path), to.place(name))
        else:
            to.write(name, self.place(path).read_text(encoding="utf-8"))

    def argv(self, line: Line) -> list[str]:
        """The line as it is typed here."""
        named = [self.words.get(word, word) for word in line.words]
        return [str(self.place(word)) if word.startswith("/") else word for word in named]

    def run(self, line: Line, *more: str, says: str = "", codes: tuple[int, ...] = (0,)) -> str:
        """Type the line, say ``says`` when asked, and see it end with one of ``codes``; what it printed."""
        done = subprocess.run(
            [*self.argv(line), *more],
            cwd=self.root,
            env=ENVIRONMENT | {"HOME": str(self.root)},
            input=says,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode in codes, (
            f"{line}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def begin(self, line: Line) -> None:
        """Type the line and leave it running, under its page's and command's name."""
        self.children.start(
            self.running(line),
            self.argv(line),
            environment=ENVIRONMENT | {"HOME": str(self.root)},
            log=self.log(line),
            folder=self.root,
        )

    def running(self, line: Line) -> str:
        return f"{self.name} {line.words[1]}"

    def log(self, line: Line) -> Path:
        """What a line that was begun has printed."""
        return self.root / f"{line.words[1]}.log"

    def until(self, there: Callable[[], bool], *, what: str) -> None:
        """Wait for something on this desk."""
        ends_s = time.monotonic() + PATIENCE_S
        while not there():
            assert time.monotonic() < ends_s, f"{self.name}: {what}"
            time.sleep(LOOK_EVERY_S)

    def end(self, line: Line) -> None:
        """End a line that was begun, and nothing else: by its process id and start."""
        marks = load_marks(self.root.parent / RECORD)
        end([one for one in marks if one.name == self.running(line)], grace_s=10.0)

    def until_ended(self, line: Line, *, code: int) -> None:
        """Wait for a line that was begun to end by itself."""
        name = self.running(line)
        self.until(lambda: name in self.children.ended(), what=f"the end of {line}")
        assert self.children.ended()[name] == code, self.log(line).read_text(encoding="utf-8")


def fingerprint_in(text: str) -> str:
    """The one fingerprint in what a command printed, without the gaps for reading it aloud."""
    (found,) = {
        one.replace(" ", "") for one in re.findall(r"(?:\b[0-9a-f]{4}\b ?){16}|[0-9a-f]{64}", text)
    }
    return str(found)
