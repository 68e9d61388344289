"""Real processes of two hospitals and a coordinator: what they give, what they forbid, what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from small_federation import processes_that_mention, seeded_settings

from oncofed_client.carried_head import carried_head
from oncofed_client.courier.jail import courier_command, jail_level
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_common.processes import load_marks
from oncofed_common.wire import read_reply, unframe
from oncofed_simulation.demo import (
    MARKER,
    Plan,
    Screen,
    conduct,
    found,
    start_sites,
    taken_over,
)
from oncofed_simulation.founding import Federation
from oncofed_simulation.in_process import run_in_process
from oncofed_simulation.patients.writer import wards_of, write_cohorts
from oncofed_simulation.processes import Supervisor

pytestmark = pytest.mark.slow

PATIENTS = 5
HOSTILE = Path(__file__).parents[1] / "client" / "hostile.py"
SILENT = Screen(say=lambda what: None, bar=lambda what, done, total: None)


@dataclass(frozen=True)
class Done:
    """A finished federation of real processes, and what was seen while it ran."""

    root: Path
    federation: Federation
    run: str
    stolen: dict[str, object]
    foreign_sockets: dict[str, list[str]]

    @property
    def release(self) -> Path:
        return self.federation.coordinator / "runs" / self.run / "release"

    @property
    def audit(self) -> Path:
        return self.federation.coordinator / "runs" / self.run / "audit"


@pytest.fixture(scope="module")
def done() -> Iterator[Done]:
    # a short path: a socket's name has room for a hundred characters
    root = Path(tempfile.mkdtemp(prefix="fed-"))
    cohorts = write_cohorts(
        wards_of(sites=2, patients=PATIENTS, seed=11),
        seed=11,
        out=root / "cohorts",
        workers=2,
        progress=lambda *a: None,
    )
    plan = Plan(sites=2, patients=PATIENTS, seed=11, settings=seeded_settings(root))
    with Supervisor(root / "processes.json", grace_s=2.0) as children:
        federation, link = found(root, list(cohorts), children, plan=plan)
        for site in federation.sites:
            shutil.copytree(site.home.root, root / "twins" / site.name, symlinks=True)
        shutil.copytree(federation.coordinator, root / "twins" / "coordinator", symlinks=True)
        start_sites(federation, children)
        foreign = {site.name: _sockets_outside_unix(site.home) for site in federation.sites}
        stolen = _attack(federation)
        run = conduct(federation, link, screen=SILENT)
    yield Done(root=root, federation=federation, run=run, stolen=stolen, foreign_sockets=foreign)
    shutil.rmtree(root)


def test_real_processes_and_one_process_give_the_same_bytes(done: Done) -> None:
    """Flower carries; it decides nothing. Seeded virtual homes, one thread, one machine."""
    twins = done.root / "twins"
    federation = Federation(
        coordinator=twins / "coordinator",
        sites=tuple(
            replace(site, home=Home.open(twins / site.name)) for site in done.federation.sites
        ),
        study=done.federation.study,
    )
    outcome = run_in_process(
        federation, device=torch.device("cpu"), on_progress=lambda name: lambda *a: None, watch=None
    )
    assert outcome.status == "complete"
    ours = (outcome.release / "weights.safetensors").read_bytes()
    assert ours == (done.release / "weights.safetensors").read_bytes()


def test_a_trainer_has_no_socket_outside_af_unix(done: Done) -> None:
    """Read from the kernel's tables of the running processes."""
    assert done.foreign_sockets == {site.name: [] for site in done.federation.sites}


def test_code_in_the_couriers_place_gets_nothing_from_the_real_trainer(done: Done) -> None:
    """Files, memory, signals, other routes, the other site's socket."""
    assert {name: got for name, got in done.stolen.items() if got is not None} == {}


def test_every_round_counts_every_site_and_every_site_paid(done: Done) -> None:
    """The release says complete, the ledgers say as many rounds."""
    manifest = json.loads((done.release / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    for site in done.federation.sites:
        with Ledger.open(site.home) as ledger:
            (spent,) = ledger.budget()["studies"]
        rounds = done.federation.study.training.rounds
        assert spent["rounds"] == f"{rounds}/{rounds}"
        kept = carried_head(site.home.courier)
        assert kept is not None, "from inside its jail the courier keeps the head that it carried"
        assert kept.sequence == rounds


def test_the_number_of_patients_never_crosses_the_wire(done: Done) -> None:
    """What left says what was declared; it is the same whoever was drawn, and says so of seeds."""
    for path in sorted(done.audit.rglob("*.reply")):
        envelope, _ = unframe(path.read_bytes(), cap_bytes=10**7)
        reply, _ = read_reply(envelope)
        assert reply.protected == 0
        fields = json.dumps(reply.payload())
        assert "patient" not in fields
        assert "cohort" not in fields
    sizes = {path.stat().st_size for path in done.audit.rglob("*.reply")}
    assert max(sizes) - min(sizes) <= 8  # numbers of one digit more or less in the envelope


def test_nothing_is_left_running(done: Done) -> None:
    """Neither what the supervisor started nor what its children started."""
    assert load_marks(done.root / "processes.json") == []
    assert not processes_that_mention(str(done.root))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_killed_or_interrupted_leaves_nothing_running(
    number: signal.Signals,
) -> None:
    """While SuperLink, trainers and couriers run; and the next demo takes the folder over."""
    root = Path(tempfile.mkdtemp(prefix="kill-"))
    out = root / "out"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from oncofed_simulation.demo import Plan, Screen, demo\n"
        "silent = Screen(say=lambda what: None, bar=lambda what, done, total: None)\n"
        "plan = Plan(sites=2, patients=2, seed=3, settings=Path(sys.argv[2]))\n"
        "if __name__ == '__main__':\n"
        "    demo(Path(sys.argv[1]), plan=plan, screen=silent)\n"
    )
    script = root / "script.py"
    script.write_text(code)
    argv = [sys.executable, str(script), str(out), str(seeded_settings(root))]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as parent:
        couriers = [out / "sites" / f"hospital-{n}" / "courier" / "process.log" for n in (1, 2)]
        while not all(path.exists() for path in couriers):
            assert parent.poll() is None
            time.sleep(0.1)
        assert len(processes_that_mention(str(out))) > 6
        parent.send_signal(number)
        assert parent.wait(timeout=30) != 0
    until = time.monotonic() + 10
    while processes_that_mention(str(out)) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_that_mention(str(out)) == []
    with taken_over(out):
        assert sorted(path.name for path in out.iterdir()) == [MARKER]
    shutil.rmtree(root)


def _trainer_pids(home: Home) -> list[int]:
    """The trainer and whatever started it (``unshare``), by the command line."""
    return processes_that_mention(f"oncofed_client.trainer\x00--home\x00{home.root}")


def _sockets_outside_unix(home: Home) -> list[str]:
    """Sockets of the site's trainer that are not in the kernel's table of unix sockets."""
    found: list[str] = []
    pids = _trainer_pids(home)
    assert pids
    for pid in pids:
        table = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
        unix = {row.split()[6] for row in table}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:[") and target[8:-1] not in unix:
                found.append(target)
    return found


def _attack(federation: Federation) -> dict[str, object]:
    """Run the hostile program in the courier's jail of the first site, against its real trainer."""
    site, other = federation.sites
    scan = next(site.cohort.rglob("*_T1w.nii.gz"))
    targets = {
        "cohort": str(site.cohort),
        "scan": str(scan),
        "trainer": str(site.home.trainer),
        "key": str(site.home.trainer / "key.pem"),
        "own_socket": str(site.home.socket),
        "other_file": str(other.home.trainer / "key.pem"),
        "other_socket": str(other.home.socket),
        "pid": _trainer_pids(site.home)[-1],
        "abstract": "none-such",
    }
    folder = site.home.root / "courier"
    shutil.copy(HOSTILE, folder / "hostile.py")
    (folder / "targets.json").write_text(json.dumps(targets))
    argv = [sys.executable, str(folder / "hostile.py"), str(folder / "targets.json")]
    command = courier_command(
        argv,
        level=jail_level(),
        home=folder,
        socket_dir=site.home.socket.parent,
        hidden=[site.cohort, site.home.trainer, other.home.root],
    )
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert len(found) > 30
    return dict(found)
