"""An installed program that is interrupted while it loads says one line, and loads little before."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from oncofed_common.entry import start

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SLOW = """
import time
from pathlib import Path
Path(__file__).with_name("loading").touch()
try:
    time.sleep(30)
except BaseException:  # as some libraries do
    raise ImportError("no library")
"""


def test_ctrl_c_while_a_program_loads_is_one_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    argv = [sys.executable, "-c", "from oncofed_common.entry import start; start('slow')"]
    with subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 30
        while not (tmp_path / "loading").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=10)
    assert (process.returncode, out) == (1, "")
    assert said == "oncofed: interrupted; allowed: -; next: run the command again\n"


def test_an_interrupt_that_main_lets_through_is_quiet_too(tmp_path, monkeypatch, capfd):
    (tmp_path / "interrupted_program.py").write_text("def main(): raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        start("interrupted_program")
    assert ended.value.code == 1
    assert capfd.readouterr().err.startswith("oncofed: interrupted;")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("program", ["oncofed-site", "oncofed-coordinator", "oncofed-simulate"])
def test_what_is_loaded_before_the_guard_stands_is_next_to_nothing(program):
    module, _, name = SCRIPTS[program].partition(":")
    code = f"import sys; from {module} import {name}; print(*sys.modules); {name}()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True
    )
    loaded, said = done.stdout.splitlines()
    assert not {"typer", "click", "rich", "numpy", "torch", "flwr"} & set(loaded.split())
    assert said.startswith("oncofed ")
