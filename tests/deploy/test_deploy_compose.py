"""Compose files keep to the compose schema and to our demands; each demand is seen to fail."""

import copy
import json
from importlib.resources import files

import jsonschema
import pytest
from deploy_manifests import (
    DEPLOY,
    demands_on_coordinator,
    demands_on_hospital,
    demands_on_key_file,
    demands_on_service,
    laid_over,
    read_compose,
    unmet,
)

COMPOSE_FILES = sorted(path.name for path in DEPLOY.glob("compose.*.yaml"))
HOSPITAL = read_compose(DEPLOY / "compose.hospital.yaml")
COORDINATOR = read_compose(DEPLOY / "compose.coordinator.yaml")
KEY_FILE = read_compose(DEPLOY / "compose.key-file.yaml")
HOME = "${{ONCOFED_SITE:?}}/oncofed/{}"
SERVICES = {**HOSPITAL["services"], **COORDINATOR["services"]}


def _set(**changes):
    def plant(service):
        service.update(changes)

    return plant


def _mount(target, **changes):
    def plant(service):
        next(m for m in service["volumes"] if m["target"] == target).update(changes)

    return plant


def _more(**mount):
    def plant(service):
        service["volumes"].append(mount)

    return plant


def _both(*plants):
    def plant(service):
        for one in plants:
            one(service)

    return plant


IN_ANY_SERVICE = {
    "nobody is root": _set(user="0:10001"),
    "all capabilities dropped": _set(cap_add=["NET_ADMIN"]),
    "no new privileges": _set(security_opt=[]),
    "confined": _set(security_opt=["no-new-privileges:true", "seccomp:unconfined"]),
    "not privileged": _set(privileged=True),
    "read-only root": _set(read_only=False),
    "own namespaces": _set(pid="host"),
    "temporary files in memory": _set(tmpfs=[]),
    "processes bounded": _set(pids_limit=-1),
    "memory bounded": lambda service: service.pop("mem_limit"),
    "nothing swapped": _set(memswap_limit=-1),
    "no core dumps": _set(ulimits={}),
    "says how it is": lambda service: service.pop("healthcheck"),
    "restart said": lambda service: service.pop("restart"),
    "logs bounded": _set(logging={"driver": "json-file"}),
    "zombies reaped": _set(init=False),
    "image by name and version": _set(image="docker.io/library/nginx:latest"),
    "no socket of the container engine": _more(
        type="bind",
        source="/var/run/docker.sock",
        target="/docker.sock",
        bind={"create_host_path": False},
    ),
    "no folder made by mistake": _more(type="bind", source="/srv", target="/srv", bind={}),
}

IN_A_HOSPITAL = {
    "trainer has no network": ("trainer", _set(network_mode="bridge")),
    "trainer knows no proxy": ("trainer", _set(environment={"https_proxy": "http://proxy:3128"})),
    "courier opens no port": ("courier", _set(ports=["8080:8080"])),
    "data is read-only": ("trainer", _mount("/cohort", read_only=False)),
    "courier has no scans": ("courier", _more(source="${ONCOFED_COHORT}", target="/cohort")),
    "courier has its own folder and the socket": ("courier", _more(source="x", target="/x")),
    "courier is given nothing by another way": ("courier", _set(secrets=["oncofed-key"])),
    "trainer only reads the courier's folder": (
        "trainer",
        _mount("/home/oncofed/courier", read_only=False),
    ),
    "trainer has not the approver's key": (
        "trainer",
        _more(source=HOME.format("approver"), target="/home/oncofed/approver"),
    ),
    "parts of the home as they are": (
        "courier",
        _mount("/home/oncofed/courier", type="volume", source="courier-home"),
    ),
    "one shared volume": (
        "courier",
        _mount("/home/oncofed/courier", source=HOME.format("trainer")),
    ),
    "two users": ("courier", _set(user="10001:10001")),
    "socket given to the courier's group": ("trainer", _set(group_add=[])),
    "head on a mount of its own": (
        "trainer",
        _mount("/home/oncofed/head", source=HOME.format("trainer")),
    ),
    "proxies in both spellings": ("courier", lambda s: s["environment"].pop("https_proxy")),
    "loopback never through a proxy": (
        "courier",
        lambda s: s["environment"].update(NO_PROXY="", no_proxy=""),
    ),
    "courier waits for the trainer": ("courier", _set(depends_on={})),
    "both come back": ("courier", _set(restart="no")),
    "stopped within two seconds": ("trainer", _set(stop_grace_period="1m")),
    "management starts only when asked": ("site", _set(profiles=[])),
}

AT_THE_COORDINATOR = {
    "superlink opens no port": ("coordinator", _set(ports=["8000:8000"])),
    "superlink is inside only": ("coordinator", _set(networks=["inside", "outside"])),
    "the door is on both sides": ("door", _set(networks=["outside"])),
    "the door has no key but its own": ("door", _more(target="/tls/ca.key", read_only=True)),
    "the door changes nothing": ("door", _mount("/tls/ca.pem", read_only=False)),
}


@pytest.fixture(scope="module")
def compose_schema():
    """The compose specification's own JSON schema, which check-jsonschema carries."""
    carried = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(carried.read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_a_compose_file_keeps_to_the_compose_schema(name, compose_schema):
    errors = compose_schema.iter_errors(read_compose(DEPLOY / name))
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_a_misspelt_key_breaks_the_compose_schema(compose_schema):
    faulty = copy.deepcopy(HOSPITAL)
    faulty["services"]["trainer"]["network-mode"] = "none"
    assert not compose_schema.is_valid(faulty)


def test_a_key_that_is_given_twice_is_not_read(tmp_path):
    text = (DEPLOY / "compose.hospital.yaml").read_text(encoding="utf-8")
    twice = tmp_path / "compose.yaml"
    twice.write_text(text.replace("    network_mode: none\n", "    network_mode: none\n" * 2, 1))
    with pytest.raises(ValueError, match="given twice: network_mode"):
        read_compose(twice)


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_locked_down(name):
    assert unmet(demands_on_service(SERVICES[name])) == set()


def test_the_trainer_has_the_scans_and_no_network_the_courier_the_reverse():
    assert unmet(demands_on_hospital(HOSPITAL)) == set()


def test_hospitals_reach_the_coordinator_s_door_and_nothing_behind_it():
    assert unmet(demands_on_coordinator(COORDINATOR)) == set()


@pytest.mark.parametrize("demand", IN_ANY_SERVICE)
def test_a_planted_fault_in_any_container_is_found(demand):
    for name, service in SERVICES.items():
        faulty = copy.deepcopy(service)
        if demand == "says how it is" and "profiles" in service:
            continue  # it ends by itself
        IN_ANY_SERVICE[demand](faulty)
        assert demand in unmet(demands_on_service(faulty)), name


@pytest.mark.parametrize("demand", IN_A_HOSPITAL)
def test_a_planted_fault_in_the_hospital_s_file_is_found(demand):
    service, plant = IN_A_HOSPITAL[demand]
    faulty = copy.deepcopy(HOSPITAL)
    plant(faulty["services"][service])
    assert demand in unmet(demands_on_hospital(faulty))


@pytest.mark.parametrize("demand", AT_THE_COORDINATOR)
def test_a_planted_fault_in_the_coordinator_s_file_is_found(demand):
    service, plant = AT_THE_COORDINATOR[demand]
    faulty = copy.deepcopy(COORDINATOR)
    plant(faulty["services"][service])
    assert demand in unmet(demands_on_coordinator(faulty))


def test_every_demand_on_a_compose_file_has_a_planted_fault():
    assert set(IN_ANY_SERVICE) == set(demands_on_service(SERVICES["trainer"]))
    assert set(IN_A_HOSPITAL) == set(demands_on_hospital(HOSPITAL))
    assert set(AT_THE_COORDINATOR) == set(demands_on_coordinator(COORDINATOR))


def test_a_tunnel_is_locked_down_and_the_courier_is_left_with_it_alone():
    tunnelled = read_compose(DEPLOY / "compose.stunnel.yaml")
    assert list(tunnelled["services"]) == ["tunnel"]
    lacking = {"says how it is", "image by name and version"}  # stunnel has no image of its own
    assert unmet(demands_on_service(tunnelled["services"]["tunnel"])) == lacking
    assert tunnelled["networks"]["outbound"] == {"internal": True}
    assert HOSPITAL["services"]["courier"]["networks"] == ["outbound"]
    assert set(tunnelled["services"]["tunnel"]["networks"]) == {"outbound", "outside"}


def test_a_door_that_asks_for_certificates_is_another_configuration_and_one_authority():
    asked = read_compose(DEPLOY / "compose.clients.yaml")
    assert list(asked) == ["services"]
    assert list(asked["services"]) == ["door"]
    assert set(asked["services"]["door"]) == {"volumes", "healthcheck"}
    targets = {mount["target"]: mount for mount in asked["services"]["door"]["volumes"]}
    assert set(targets) == {"/etc/oncofed/nginx.conf", "/tls/sites.pem"}
    assert all(mount["read_only"] for mount in targets.values())


ON_THE_KEY_FILE = {
    "for trainer and site alone": lambda s: s.update(courier=s["trainer"]),
    "one mount and nothing else": lambda s: s["trainer"].update(network_mode="bridge"),
    "read-only": lambda s: s["trainer"]["volumes"][0].update(read_only=False),
    "one name for both": lambda s: s["site"]["volumes"][0].update(target="/run/secrets/other"),
    "outside of the home": lambda s: s["site"]["volumes"][0].update(target="/home/oncofed/key"),
    "must be said": lambda s: s["trainer"]["volumes"][0].update(source="${ONCOFED_KEY_FILE:-/key}"),
    "no folder made by mistake": lambda s: s["trainer"]["volumes"][0].update(bind={}),
    "courier as without it": lambda s: s.update(courier={"volumes": s["trainer"]["volumes"]}),
}


def test_a_key_file_is_read_by_the_trainer_and_the_courier_has_no_such_mount():
    whole = laid_over(HOSPITAL, KEY_FILE)
    assert unmet(demands_on_key_file(HOSPITAL, KEY_FILE)) == set()
    assert unmet(demands_on_hospital(whole)) == set()
    for service in whole["services"].values():
        assert unmet(demands_on_service(service)) == set()
    (target,) = {one["volumes"][0]["target"] for one in KEY_FILE["services"].values()}
    have = {
        n for n, one in whole["services"].items() if target in str(one) or "KEY_FILE" in str(one)
    }
    assert have == {"trainer", "site"}


@pytest.mark.parametrize("demand", ON_THE_KEY_FILE)
def test_a_planted_fault_in_the_key_file_s_mount_is_found(demand):
    faulty = copy.deepcopy(KEY_FILE)
    ON_THE_KEY_FILE[demand](faulty["services"])
    assert demand in unmet(demands_on_key_file(HOSPITAL, faulty))
    assert set(ON_THE_KEY_FILE) == set(demands_on_key_file(HOSPITAL, KEY_FILE))


def test_a_gpu_changes_nothing_but_the_device():
    gpu = read_compose(DEPLOY / "compose.gpu.yaml")
    assert list(gpu) == ["services"]
    assert gpu["services"] == {
        "trainer": {
            "deploy": {
                "resources": {
                    "reservations": {
                        "devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
                    }
                }
            }
        }
    }
