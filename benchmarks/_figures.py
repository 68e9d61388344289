"""How a benchmark says what it measured: a table, a JSON file, and one last line with every bar."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number: at most ``bar``, at least ``floor``, or for information. None: not measured."""

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    floor: float | None = None

    @property
    def missed(self) -> bool:
        if self.value is None:
            return False
        over = self.bar is not None and not self.value <= self.bar
        return over or (self.floor is not None and not self.value >= self.floor)

    def words(self) -> str:
        """The figure with its bar, as the last line has it."""
        if self.value is None:
            return f"{self.name}: not measured"
        return f"{self.name} {self.value:.3g} {self.unit} ({self.limits()})".replace("  ", " ")

    def limits(self) -> str:
        """What it may be, in words; nothing for information."""
        least = [] if self.floor is None else [f"at least {self.floor:.3g}"]
        most = [] if self.bar is None else [f"at most {self.bar:.3g}"]
        return ", ".join(least + most)


def resident_kib(name: str) -> int:
    """A line of this process's status, such as ``VmRSS`` or ``VmHWM``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise SystemExit(f"this kernel does not report {name}")


def machine() -> str:
    """What it ran on."""
    import torch  # noqa: PLC0415  some scripts measure processes that must not have loaded it

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.1f}, {platform.machine()}, {gpu}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def report(
    figures: Sequence[Figure],
    *,
    title: str,
    path: Path | None,
    rows: Sequence[Mapping[str, object]] = (),
) -> int:
    """Print and keep the figures (and keep ``rows``); the exit status: 1 where a bar is missed."""
    where = machine()
    table = Table("figure", "value", "bar", title=f"{title}; {where}")
    for figure in figures:
        value = "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
        table.add_row(figure.name, value, figure.limits())
    Console().print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {figure.name: vars(figure) for figure in figures}
        found = {"machine": where, "figures": named, "rows": list(rows)}
        path.write_text(json.dumps(found, indent=1))
    missed = [figure.name for figure in figures if figure.missed]
    barred = [f.words() for f in figures if f.value is None or (f.bar, f.floor) != (None, None)]
    print("; ".join([*barred, f"missed: {', '.join(missed)}" if missed else "all bars met"]))
    return 1 if missed else 0
