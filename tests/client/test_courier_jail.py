"""What the kernel forbids the courier, tried by a process in its place against a stand-in trainer."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import oncofed_client
import oncofed_common
from oncofed_client.courier.jail import courier_command, jail_level
from oncofed_common.errors import SystemRefusal

HERE = Path(__file__).parent
LEVELS = ["namespaces+landlock", "landlock"]


@dataclass(frozen=True)
class Site:
    """Two sites on one machine; the courier of the first is the hostile one."""

    root: Path
    trainer: subprocess.Popen
    abstract: str

    @property
    def home(self):
        return self.root / "a" / "courier"

    @property
    def sockets(self):
        return self.root / "a" / "run"

    def hidden(self):
        return [self.root / "cohorts", self.root / "a" / "trainer", self.root / "b"]

    def targets(self):
        names = {
            "cohort": "cohorts/a", "scan": "cohorts/a/scan.nii", "trainer": "a/trainer",
            "key": "a/trainer/key.pem", "own_socket": "a/run/trainer.sock",
            "other_file": "b/trainer/key.pem", "other_socket": "b/run/trainer.sock",
        }  # fmt: skip
        paths = {name: str(self.root / path) for name, path in names.items()}
        return paths | {"pid": self.trainer.pid, "abstract": self.abstract}

    def courier(self, level, argv):
        return courier_command(
            argv, level=level, home=self.home, socket_dir=self.sockets, hidden=self.hidden()
        )

    def attack(self, level):
        """What each attempt gets."""
        shutil.copy(HERE / "hostile.py", self.home / "hostile.py")
        (self.home / "targets.json").write_text(json.dumps(self.targets()))
        argv = [sys.executable, str(self.home / "hostile.py"), str(self.home / "targets.json")]
        done = subprocess.run(
            self.courier(level, argv), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def running(argv, **settings):
    """A process that is gone afterwards, whatever the test says meanwhile."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def site():
    root = Path(tempfile.mkdtemp(prefix="jail-"))
    for name in ("cohorts/a", "a/trainer", "a/courier", "a/run", "b/trainer", "b/run"):
        (root / name).mkdir(parents=True)
    (root / "cohorts/a/scan.nii").write_text("a scan")
    (root / "a/trainer/key.pem").write_text("a key")
    (root / "b/trainer/key.pem").write_text("another key")
    abstract = f"trainer-{os.getpid()}"
    argv = [sys.executable, str(HERE / "stand_in_trainer.py")]
    argv += [str(root / "a/run/trainer.sock"), str(root / "a/trainer/key.pem")]
    with (
        socket.socket(socket.AF_UNIX) as other,
        socket.socket(socket.AF_UNIX) as nameless,
        running(argv, env={"SECRET": "of the trainer"}) as trainer,
    ):
        other.bind(str(root / "b/run/trainer.sock"))
        other.listen(8)
        nameless.bind("\0" + abstract)
        nameless.listen(8)
        assert trainer.stdout.readline().startswith(b"ready")
        while not (root / "a/run/trainer.sock").exists():
            assert trainer.poll() is None
            time.sleep(0.02)
        yield Site(root=root, trainer=trainer, abstract=abstract)
    shutil.rmtree(root)


@pytest.fixture
def _this_machine_can_jail():
    """Everywhere that runs our tests, at least one level must hold; there is nothing to skip."""
    assert jail_level() != "none"


@pytest.mark.usefixtures("_this_machine_can_jail")
def test_in_the_jail_hostile_code_gets_nothing_and_disturbs_nobody(site):
    got = site.attack(jail_level())
    assert {name: what for name, what in got.items() if what is not None} == {}
    assert site.trainer.poll() is None
    assert not (site.root / "a/trainer/planted").exists()


def test_under_landlock_alone_it_gets_nothing_but_sockets_that_have_a_name(site):
    got = site.attack("landlock")
    got.pop("speak to the other site's trainer")  # left to file permissions, as jail.py says
    assert {name: what for name, what in got.items() if what is not None} == {}
    assert site.trainer.poll() is None


def test_without_the_jail_the_same_code_gets_what_it_wants(tmp_path):
    """Else the two tests above could not fail. A stand-in of its own: this one is killed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "key.pem").write_text("a key")
    argv = [sys.executable, str(HERE / "stand_in_trainer.py")]
    argv += [str(tmp_path / "run/trainer.sock"), str(tmp_path / "key.pem")]
    with running(argv) as trainer:
        assert trainer.stdout.readline().startswith(b"ready")
        path = str(tmp_path / "key.pem")
        targets = dict.fromkeys(
            ("scan", "key", "other_file", "own_socket", "other_socket"), path
        ) | {"cohort": str(tmp_path), "trainer": str(tmp_path), "pid": trainer.pid, "abstract": "x"}
        (tmp_path / "targets.json").write_text(json.dumps(targets))
        done = subprocess.run(
            [sys.executable, str(HERE / "hostile.py"), str(tmp_path / "targets.json")],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
    got = json.loads(done.stdout)
    for attempt in ("read a scan", "read the trainer's key", "link the trainer's key",
                    "write into the trainer's home", "read the trainer's environment",
                    "read the trainer's memory", "trace the trainer", "signal the trainer",
                    "take the trainer's open key"):  # fmt: skip
        assert got[attempt] is not None, attempt


@pytest.mark.parametrize("level", LEVELS)
def test_in_the_jail_the_courier_can_still_do_its_work(site, level):
    program = f"""
import os, socket, ssl, tempfile
import flwr.clientapp, numpy, oncofed_client.courier.carry as c
from pathlib import Path
from oncofed_common.tensors import pack_tensors, read_tensors
from oncofed_common.wire import frame, unframe
task = frame(b"task", pack_tensors({{"w": numpy.ones(3, numpy.float32)}}))
reply = c.carry(task, socket_path=Path({str(site.sockets / "trainer.sock")!r}),
    expires_s=c.time.time() + 30)
envelope, update = unframe(reply, cap_bytes=10_000)
assert envelope == b"answer to task", envelope
assert read_tensors(update)["w"].tolist() == [2, 2, 2], update
Path("note").write_text("mine")
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
assert ssl.create_default_context().cert_store_stats()["x509"] >= 0
os.fork() or os._exit(0)
os.wait()
"""
    done = subprocess.run(
        site.courier(level, [sys.executable, "-c", program]),
        env={"TMPDIR": str(site.home)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (site.home / "note").read_text() == "mine"


@pytest.mark.parametrize("level", LEVELS)
def test_an_ordinary_user_can_build_the_jail_too(level):
    python = shutil.which("python3.11", path="/usr/bin:/usr/local/bin")
    if os.geteuid() != 0:
        pytest.skip("the other tests here run as an ordinary user already")
    if python is None:
        pytest.skip("no Python 3.11 that another user may execute")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = folder / "code"
        for package, parts in ((oncofed_client, ("courier",)), (oncofed_common, ())):
            source = Path(package.__path__[0])
            (code / source.name).mkdir(parents=True)
            for file in ("__init__.py", "errors.py"):
                if (source / file).exists():
                    shutil.copy(source / file, code / source.name / file)
            for part in parts:
                shutil.copytree(source / part, code / source.name / part)
        for part in ("home", "run", "cohort"):
            (folder / part).mkdir()
        (folder / "cohort/scan").write_text("a scan")
        build = (
            "import sys; from pathlib import Path; from oncofed_client.courier import jail;"
            f"root = Path({name!r});"
            'look = f\'open({str(root / "home/ok")!r}, "w");'
            ' print(open({str(root / "cohort/scan")!r}).read())\';'
            "import os; c = jail.courier_command([sys.executable, '-c', look],"
            f" level={level!r}, home=root / 'home', socket_dir=root / 'run', hidden=[root / 'cohort']);"
            "os.execv(c[0], c)"
        )
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", build],
            env={"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (folder / "home/ok").exists(), done.stderr
        assert "a scan" not in done.stdout
        assert "Error" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("secret", ["home", "run", "home/inner"])
def test_a_secret_inside_what_the_courier_is_given_is_refused(tmp_path, secret):
    for name in ("home/inner", "run"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(SystemRefusal, match="hidden folder lies within"):
        courier_command(
            ["true"], level="none", home=tmp_path / "home", socket_dir=tmp_path / "run",
            hidden=[tmp_path / secret],
        )  # fmt: skip


def test_a_secret_inside_the_python_tree_is_refused_also_through_a_link(tmp_path):
    (tmp_path / "data").symlink_to(sys.prefix)
    with pytest.raises(SystemRefusal, match="hidden folder lies within"):
        courier_command(
            ["true"], level="none", home=tmp_path, socket_dir=tmp_path, hidden=[tmp_path / "data"]
        )


def test_a_launcher_whose_jail_leaks_starts_nothing(tmp_path):
    """The last check opens each hidden path: here one that any process may open."""
    for name in ("home", "run"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        courier_command(
            [sys.executable, "-c", "print('started')"], level="landlock", home=tmp_path / "home",
            socket_dir=tmp_path / "run", hidden=[Path("/dev/null")],
        ),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "can be opened from inside the jail" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_that_is_not_in_the_jail_is_one_line_and_no_traceback(site, level):
    done = subprocess.run(
        site.courier(level, ["/usr/bin/env"]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "could not be built or entered" in done.stderr


def test_the_courier_and_its_children_die_with_the_launcher_even_if_that_is_killed(site):
    program = "import time, os; os.fork() and os.write(1, b'up\\n'); time.sleep(600)"
    with running(site.courier("namespaces+landlock", [sys.executable, "-c", program])) as launcher:
        assert launcher.stdout.readline() == b"up\n"
        launcher.kill()
        rest = launcher.stdout.read()  # ends when the last process that holds the pipe is gone
    assert rest == b""


def test_the_launcher_hands_signals_on_and_returns_what_the_courier_returned(site):
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('up', flush=True)\n"
        "time.sleep(600)"
    )
    with running(site.courier("namespaces+landlock", [sys.executable, "-c", program])) as launcher:
        assert launcher.stdout.readline() == b"up\n"
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(10) == 7
