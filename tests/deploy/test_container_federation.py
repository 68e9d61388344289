"""Tried for real: images, a coordinator and two hospitals in containers, a study of two rounds."""

import json
import subprocess
import sys
import time

import pytest
from container_certificates import certified
from container_engine import DOOR, build_all, image, missing, open_engine, size_mb
from container_federation import CALLED, PREFIX, PUBLIC, SITES, containers, found_federation
from container_probes import LOCKED, OPEN_PORTS, REACHED, UNREADABLE
from deploy_manifests import DEPLOY

from oncofed_client.carried_head import carried_head
from oncofed_server.verify import verify
from oncofed_simulation.demo import PLAN
from oncofed_simulation.founding import last_day

pytestmark = [
    pytest.mark.container,
    pytest.mark.hours,  # from nothing, images alone take minutes, and a busy machine takes twice as long
    pytest.mark.timeout(3000),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
COURIER_MB = 450
BUILT_WITHIN_S = 360
AWAY_S = 45  # the health check is patient for 30
ROUNDS = 2
SHORT = {
    "rounds = 3": f"rounds = {ROUNDS}",
    "steps_per_round = 6": "steps_per_round = 1",
    "reply_after_s = 20": "reply_after_s = 0",
    "sampling_rate = 0.25": "sampling_rate = 0.5",
}
UNOPENED = {"No such file or directory", "Permission denied"}
ANSWERED = {"400", "401", "415", "422"}  # by SuperLink, to what no node has signed
PAGES = {
    "/": 404,
    "/health": 404,
    "/v1/control/list-runs": 404,
    "/v1/runtime/acquire-task": 404,
    "/v1/fleet": 404,
    "/v1/fleet/../control/list-runs": 404,
    "/v1/fleet/%2e%2e/control/list-runs": 404,
    "//v1/control/list-runs": 404,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Podman, and how long each image took to build (those that were there took no time)."""
    engine = open_engine(tmp_path_factory.mktemp("engine"))
    return engine, build_all(engine)


@pytest.fixture(scope="module")
def federation(built, tmp_path_factory):
    """Two hospitals and a coordinator that have run a study, one proxy having been away; still up."""
    root = tmp_path_factory.mktemp("federation")
    settings = root / "settings.toml"
    text = PLAN.settings.read_text()
    for old, new in SHORT.items():
        assert old in text
        text = text.replace(old, new)
    text = text.replace("[study]\n", f"[study]\nexpires = {last_day().isoformat()}\n", 1)
    settings.write_text(f"{text}\n[virtual]\nseed = 5\n")
    with containers(built[0], root) as here:
        found_federation(here, settings)
        for site in SITES:
            here.proxy(site, up=True)
            here.compose(site, "up", "-d")
        _run_study(here)
        yield here


def _run_study(here):
    """The whole study; north's proxy goes as soon as its first task is on the way."""
    home = ("--home", "/home/oncofed")
    for site in SITES:
        here.until(lambda s=site: here.health(s, "trainer"), what=f"{site}'s trainer", within_s=120)
    here.took_s["connected"] = here.until(
        lambda: _connected(here) == set(SITES), what="connected sites", within_s=90
    )
    argv = ["podman", "exec", here.name("coordinator", "coordinator"), "oncofed-coordinator"]
    running = subprocess.Popen(
        [*argv, "run", here.study, *home, "--json"],
        env=here.engine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        here.until(lambda: _said(here, "task_sent", site="north"), what="a task", within_s=120)
        here.proxy("north", up=False)
        began_s = time.time()
        time.sleep(AWAY_S)
        here.took_s["well without a proxy"] = float(here.health("north", "courier"))
        here.proxy("north", up=True)
        here.took_s["back"] = here.until(
            lambda: _said(here, "reply_counted", site="north", round=1),
            what="north's reply",
            within_s=150,
        )
        here.took_s["away"] = time.time() - began_s
        said, _ = running.communicate(timeout=300)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, said.decode(errors="replace")


def _connected(here):
    found = here.command("coordinator", "status", "--home", "/home/oncofed")
    return {site["name"] for site in found["sites"] if site["connected"]}


def _said(here, event, **fields):
    wanted = {"event": event, **fields}.items()
    return any(wanted <= row.items() for row in here.rows())


def _ask(here, *words, network=PUBLIC):
    """The status that the door answers with, asked by curl from another container."""
    ca = here.folder("coordinator") / "oncofed" / "tls" / "ca.pem"
    argv = ["run", "--rm", "--network", network, "-v", f"{ca}:/ca.pem:ro", DOOR]
    argv += ["curl", "--silent", "--path-as-is", "--cacert", "/ca.pem", "--max-time", "10"]
    return here.engine.podman(*argv, "-o", "/dev/null", "-w", "%{http_code}", *words).stdout


def _look(here, site, service, program, *words):
    return json.loads(here.inside(site, service, "python", "-I", "-c", program, *words))


def test_three_images_take_six_minutes_of_two_cores_and_the_courier_s_is_small(built):
    engine, took_s = built
    assert took_s["cpu"] < BUILT_WITHIN_S  # seconds on the clock depend on who else is at work here
    assert size_mb(engine, image("courier")) < COURIER_MB


def test_two_hospitals_train_a_study_of_two_rounds_and_everything_verifies(federation):
    (run,) = (federation.folder("coordinator") / "oncofed" / "runs").glob("*/release")
    assert json.loads((run / "manifest.json").read_text())["status"] == "complete"
    verdict = verify(run, audit=run.with_name("audit"), trust=None, base=None)
    assert (verdict.first_fault, verdict.sums) == (None, ROUNDS)
    for site in SITES:
        spent = federation.command(site, "budget", "--home", "/home/oncofed")
        assert [study["rounds"] for study in spent["studies"]] == [f"{ROUNDS}/{ROUNDS}"]


def test_a_hospital_whose_proxy_was_away_comes_back_and_its_health_check_said_so(federation):
    assert federation.took_s["away"] > AWAY_S
    assert federation.took_s["well without a proxy"] == 0.0
    federation.until(lambda: federation.health("north", "courier"), what="health", within_s=60)


@pytest.mark.parametrize("service", ["trainer", "courier"])
@pytest.mark.parametrize("site", SITES)
def test_a_container_of_a_hospital_can_do_nothing_that_it_need_not(federation, site, service):
    found = _look(federation, site, service, LOCKED)
    assert found["capabilities"] == [0]
    assert found["no new privileges"] == ["1"]
    assert found["seccomp"] == ["2"]
    assert found["users"] == [{"trainer": 10001, "courier": 10002}[service]]
    assert found["processes"] >= 2
    assert set(found["root"].values()) == {"Read-only file system"}
    assert found["core"] == "0"
    assert found["programs"] == []


@pytest.mark.parametrize("site", SITES)
def test_the_trainer_has_no_network_no_route_and_no_flower(federation, site):
    found = _look(federation, site, "trainer", LOCKED)
    assert (found["interfaces"], found["routes"]) == (["lo"], [])
    assert "a route" not in found["reach"]
    assert found["packages"] == ["torch", "nibabel"]
    state = federation.folder(site) / "oncofed" / "trainer" / "state.json"
    assert json.loads(state.read_text())["isolation"] == "no_network"


@pytest.mark.parametrize("site", SITES)
def test_the_courier_has_no_scan_no_torch_and_no_way_but_the_proxy(federation, site):
    found = _look(federation, site, "courier", LOCKED)
    assert found["packages"] == ["flwr", "httpx"]
    assert found["files"] == ["courier", "run"]
    assert set(_look(federation, site, "courier", UNREADABLE).values()) <= UNOPENED
    other = next(name for name in SITES if name != site)
    asked = [CALLED, "192.0.2.1:443", f"{PREFIX}-proxy-{other}:3128", "proxy:3128"]
    reached = _look(federation, site, "courier", REACHED, *asked)
    assert [place for place, how in reached.items() if how == "open"] == ["proxy:3128"]


@pytest.mark.parametrize("site", SITES)
def test_the_proxy_carried_the_courier_to_the_coordinator_and_nowhere_else(federation, site):
    said = federation.engine.podman("logs", f"{PREFIX}-proxy-{site}").stdout.splitlines()
    assert f"carried {CALLED}" in said
    assert [line for line in said if line != f"carried {CALLED}"] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_is_not_the_fleet_api_is_not_there(federation, page):
    for method in ("GET", "POST"):
        status = _ask(federation, "-X", method, f"https://{CALLED}{page}")
        assert status == str(PAGES[page]), method


def test_the_fleet_api_is_there_for_posts_alone_and_superlink_answers_them(federation):
    page = f"https://{CALLED}/v1/fleet/pull-messages"
    assert _ask(federation, "-X", "GET", page) == "403"
    answered = _ask(federation, "-X", "POST", page)
    assert answered in ANSWERED


def test_the_door_is_the_one_open_port_of_the_coordinator(federation):
    engine = federation.engine
    argv = ["run", "--rm", "--network", PUBLIC, DOOR, "python3", "-c", OPEN_PORTS]
    found = json.loads(engine.podman(*argv, CALLED.partition(":")[0]).stdout)
    assert found["open"] == [8443]
    address = engine.podman(
        *("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"),
        federation.name("coordinator", "coordinator"),
    ).stdout.split()
    (inside,) = address
    argv = ["run", "--rm", "--network", PUBLIC, DOOR, "python3", "-c", REACHED, f"{inside}:8000"]
    assert "open" not in json.loads(engine.podman(*argv).stdout).values()


def test_the_trainer_sees_which_head_the_courier_carried_last(federation):
    kept = carried_head(federation.folder("north") / "oncofed" / "courier")
    assert kept is not None
    program = (
        "from pathlib import Path; from oncofed_client.carried_head import carried_head as c; "
    )
    program += "print(c(Path('/home/oncofed/courier')).sequence)"
    assert int(federation.inside("north", "trainer", "python", "-c", program)) == kept.sequence


def test_a_real_home_is_not_served_by_a_trainer_that_can_reach_a_network(federation):
    home = federation.root / "real"
    federation.real_home(home)
    words = ["run", "--rm", "--read-only", "--cap-drop=ALL", "--tmpfs", "/tmp"]
    words += ["-v", f"{home}/oncofed:/home/oncofed", "--user", "10001:10001"]
    start = [
        image("trainer"),
        "--home",
        "/home/oncofed",
        "--cohort",
        "/none",
        "--identities",
        "/no",
    ]
    engine = federation.engine
    refused = engine.podman(*words, "--network", f"{PREFIX}-north", *start, check=False)
    assert refused.returncode == 2
    assert "a trainer that can reach a network" in refused.stderr
    isolated = engine.podman(*words, "--network", "none", *start, check=False, timeout_s=90)
    assert "a trainer that can reach a network" not in isolated.stderr


def test_a_trainer_in_a_pod_leaves_the_pod_s_network_by_itself(federation):
    """The chart's words, under the chart's profile, in a container that does have a network."""
    profile = DEPLOY / "helm" / "hospital" / "oncofed-trainer.json"
    program = "from oncofed_client.isolation import network_isolation as n; print(n())"
    words = ["run", "--rm", "--read-only", "--cap-drop=ALL", "--user", "10001:10002"]
    words += ["--security-opt", "no-new-privileges", "--network", PUBLIC, "--entrypoint", ""]
    left = ["unshare", "--user", "--map-current-user", "--net", "--", "python", "-c", program]
    confined = [*words, "--security-opt", f"seccomp={profile}", image("trainer")]
    engine = federation.engine
    assert engine.podman(*confined, *left).stdout.strip() == "no_network"
    assert engine.podman(*confined, *left[5:]).stdout.strip() == "none"


def test_the_door_for_certificates_takes_who_has_one_through_the_tunnel_and_nobody_else(
    federation, tmp_path
):
    with certified(federation, tmp_path) as ask:
        assert ask("door", "/v1/fleet/pull-messages") == "000"
        assert ask("tunnel", "/v1/fleet/pull-messages") in ANSWERED
        assert ask("tunnel", "/v1/control/list-runs") == "404"


def test_a_bundle_is_installed_from_its_folder_on_a_machine_without_a_network(built, tmp_path):
    engine, _ = built
    key = tmp_path / "release.pem"
    engine.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)])
    argv = [sys.executable, str(DEPLOY / "bundle.py"), "--key", str(key), "--json"]
    argv += ["--out", str(tmp_path / "made"), "--image", f"courier={image('courier')}"]
    told = json.loads(engine.run(argv, timeout_s=600).stdout)
    bill = json.loads((tmp_path / "made" / "sbom" / "courier.cdx.json").read_text())
    named = {one["name"].lower() for one in bill["components"]}
    assert {"flwr", "numpy", "oncofed"} <= named
    assert not {"torch", "nibabel", "monai"} & named
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{tmp_path}/run"\ngraphroot = "{tmp_path}/graph"\n'
    )
    alone = {"CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf")}
    script = str(tmp_path / "made" / "install.sh")
    install = ["unshare", "--net", "sh", script, told["fingerprint"]]
    engine.run(install, more=alone, timeout_s=300)
    listed = engine.run(["podman", "images", "--format", "{{.Repository}}"], more=alone).stdout
    assert listed.split() == [image("courier").rpartition(":")[0]]


def test_the_probes_see_a_container_that_is_not_locked_down(built):
    """Each thing that the tests above look for, planted in one container."""
    engine, _ = built
    words = ["run", "--rm", "--user", "0:0", "--security-opt", "seccomp=unconfined"]
    words += ["--entrypoint", "", image("courier")]
    found = json.loads(engine.podman(*words, "python", "-I", "-c", LOCKED).stdout)
    assert found["capabilities"] != [0]
    assert (found["no new privileges"], found["seccomp"], found["users"]) == (["0"], ["0"], [0])
    assert set(found["root"].values()) == {False}
    assert found["interfaces"] != ["lo"]
    assert found["routes"] != []
    assert "a route" in found["reach"]
    assert "flwr" in found["packages"]
