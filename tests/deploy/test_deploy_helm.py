"""Charts render, Kubernetes takes every object, and each demand on them is seen to fail."""

import copy
import json
import warnings

import pytest
from deploy_manifests import DEPLOY, unmet
from ruamel.yaml import YAML

CHARTS = DEPLOY / "helm"
VERSIONS = ("1.27", "1.37")
GIVEN = {
    "hospital": {
        "node": "scans-1",
        "site": "/srv/oncofed",
        "cohort": "/srv/cohort",
        "identities": "/srv/identities.tsv",
        "coordinator": {"address": "coordinator.example.org:443"},
        "proxy": "http://proxy.example.org:3128",
    },
    "coordinator": {"claim": "coordinator-home"},
}


@pytest.fixture(scope="module")
def rendered():
    """Every chart's objects, as its template makes them of the values above."""
    return {name: _render(name, values) for name, values in GIVEN.items()}


def _render(name, values):
    from helm_python import Chart

    with Chart.load(CHARTS / name) as chart:
        told = chart.render(values=values, name="study")
    texts = told if isinstance(told, str) else "\n---\n".join(told.values())
    return [part for part in YAML(typ="safe", pure=True).load_all(texts) if part]


def _pods(objects):
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in objects
        if one["kind"] == "Deployment"
    }


def _policies(objects):
    found = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    return {one["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: one for one in found}


def demands_on_objects(objects):
    """Demands on every pod of a chart, each by name."""
    pods = list(_pods(objects).values())
    each = [one for pod in pods for one in pod["containers"]]
    locks = [one.get("securityContext", {}) for one in each]
    policies = _policies(objects)
    components = {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for one in objects
        if one["kind"] == "Deployment"
    }
    return {
        "nobody is root": all(
            pod["securityContext"].get("runAsNonRoot") is True
            and pod["securityContext"].get("runAsUser", 0) > 0
            for pod in pods
        ),
        "read-only root": all(lock.get("readOnlyRootFilesystem") is True for lock in locks),
        "all capabilities dropped": all(
            lock.get("capabilities") == {"drop": ["ALL"]} for lock in locks
        ),
        "no new privileges": all(lock.get("allowPrivilegeEscalation") is False for lock in locks),
        "confined": all(
            pod["securityContext"].get("seccompProfile", {}).get("type")
            in {"RuntimeDefault", "Localhost"}
            for pod in pods
        ),
        "own namespaces": not any(
            pod.get(kind) for pod in pods for kind in ("hostNetwork", "hostPID", "hostIPC")
        ),
        "no key to the cluster": all(
            pod.get("automountServiceAccountToken") is False
            and pod.get("enableServiceLinks") is False
            for pod in pods
        ),
        "memory bounded": all("memory" in one["resources"]["limits"] for one in each),
        "says how it is": all("readinessProbe" in one for one in each),
        "temporary files in memory": all(
            volume["emptyDir"].get("medium") == "Memory" and "sizeLimit" in volume["emptyDir"]
            for pod in pods
            for volume in pod["volumes"]
            if "emptyDir" in volume
        ),
        "a policy for every pod": components == set(policies)
        and all(set(one["policyTypes"]) == {"Ingress", "Egress"} for one in policies.values()),
    }


def demands_on_the_pair(objects):
    """Demands on a hospital: the trainer has the scans and no network, the courier the reverse."""
    pods, policies = _pods(objects), _policies(objects)
    trainer, courier = pods["study-trainer"], pods["study-courier"]
    (inner,), (outer,) = trainer["containers"], courier["containers"]
    paths = {one["mountPath"]: one for one in inner["volumeMounts"]}
    variables = {one["name"]: one["value"] for one in outer["env"]}
    return {
        "trainer's policy has no rule": not {"ingress", "egress"} & set(policies["trainer"]),
        "trainer leaves the pod's network": inner["command"][:5]
        == ["unshare", "--user", "--map-current-user", "--net", "--"],
        "trainer knows no proxy": not any(
            "PROXY" in str(one).upper() for one in inner.get("env", [])
        ),
        "nobody calls the courier": "ingress" not in policies["courier"],
        "courier has its own folder and the socket": {
            one["mountPath"] for one in outer["volumeMounts"]
        }
        == {"/tmp", "/home/oncofed/courier", "/home/oncofed/run"},
        "courier's pod has two volumes": {one["name"] for one in courier["volumes"]}
        == {"tmp", "home"}
        and not {"initContainers", "ephemeralContainers"} & set(courier),
        "courier is told by value alone": "envFrom" not in outer
        and all(set(one) == {"name", "value"} for one in outer["env"]),
        "data is read-only": all(
            paths[path].get("readOnly") is True
            for path in ("/cohort", "/identities.tsv", "/home/oncofed/courier")
        ),
        "trainer has not the approver's key": not any(
            path in {"/home", "/home/oncofed"} or "approver" in path for path in paths
        ),
        "two users": trainer["securityContext"]["runAsUser"]
        != courier["securityContext"]["runAsUser"],
        "one node": trainer["nodeSelector"] == courier["nodeSelector"],
        "proxies in both spellings": all(
            variables.get(name) == variables.get(name.lower()) is not None
            for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
        ),
        "loopback never through a proxy": {"127.0.0.1", "localhost"}
        <= set(variables.get("NO_PROXY", "").split(",")),
    }


def demands_on_the_door(objects):
    """Demands on a coordinator: SuperLink is reached through the door alone."""
    (pod,) = _pods(objects).values()
    link, door = pod["containers"]
    (service,) = [one["spec"] for one in objects if one["kind"] == "Service"]
    (config,) = [one["data"] for one in objects if one["kind"] == "ConfigMap"]
    return {
        "superlink listens on loopback": link["args"][-4:]
        == ["--host", "127.0.0.1", "--port", "8000"]
        and "ports" not in link,
        "the service leads to the door": [one["targetPort"] for one in service["ports"]]
        == ["door"],
        "in through the door alone": _policies(objects)["coordinator"].get("ingress")
        == [{"ports": [{"protocol": "TCP", "port": 8443}]}]
        and "egress" not in _policies(objects)["coordinator"],
        "the door is that of the compose file": config["nginx.conf"].strip()
        == (DEPLOY / "nginx.conf").read_text(encoding="utf-8").strip(),
        "the door has no key but its own": {
            one["mountPath"] for one in door["volumeMounts"] if one["mountPath"].startswith("/tls")
        }
        == {"/tls/ca.pem", "/tls/server.pem", "/tls/server.key"},
    }


def _edit(kind, component, path, value):
    """A fault: in the object of that kind and component, put a value at a path (None: take it away)."""

    def plant(objects):
        (found,) = [
            one
            for one in objects
            if one["kind"] == kind
            and one["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ]
        *way, last = path
        for step in way:
            found = found[step]
        if value is None:
            del found[last]
        else:
            found[last] = value

    return plant


def _pod(component, *path, value):
    return _edit("Deployment", component, ("spec", "template", "spec", *path), value)


def _one(component, *path, value):
    return _pod(component, "containers", 0, *path, value=value)


IN_ANY_CHART = {
    "nobody is root": ("securityContext", "runAsUser", 0),
    "read-only root": ("containers", 0, "securityContext", "readOnlyRootFilesystem", False),
    "all capabilities dropped": ("containers", 0, "securityContext", "capabilities", {}),
    "no new privileges": ("containers", 0, "securityContext", "allowPrivilegeEscalation", True),
    "confined": ("securityContext", "seccompProfile", {"type": "Unconfined"}),
    "own namespaces": ("hostNetwork", True),
    "no key to the cluster": ("automountServiceAccountToken", True),
    "memory bounded": ("containers", 0, "resources", "limits", {"cpu": "1"}),
    "says how it is": ("containers", 0, "readinessProbe", None),
    "temporary files in memory": ("volumes", 0, "emptyDir", {}),
}
IN_A_HOSPITAL = {
    "trainer's policy has no rule": _edit("NetworkPolicy", "trainer", ("spec", "egress"), [{}]),
    "trainer leaves the pod's network": _one("trainer", "command", value=["python", "-m", "x"]),
    "trainer knows no proxy": _one("trainer", "env", value=[{"name": "https_proxy", "value": "x"}]),
    "nobody calls the courier": _edit("NetworkPolicy", "courier", ("spec", "ingress"), [{}]),
    "courier has its own folder and the socket": _one(
        "courier", "volumeMounts", 0, "mountPath", value="/cohort"
    ),
    "courier's pod has two volumes": _pod(
        "courier", "volumes", 1, value={"name": "key-file", "hostPath": {"path": "/key"}}
    ),
    "courier is told by value alone": _one(
        "courier",
        "env",
        0,
        value={"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "key"}}, "value": ""},
    ),
    "data is read-only": _one("trainer", "volumeMounts", 1, "readOnly", value=False),
    "trainer has not the approver's key": _one(
        "trainer", "volumeMounts", 0, "mountPath", value="/home/oncofed/approver"
    ),
    "two users": _pod("courier", "securityContext", "runAsUser", value=10001),
    "one node": _pod("courier", "nodeSelector", value={}),
    "proxies in both spellings": _one("courier", "env", 1, "value", value="other"),
    "loopback never through a proxy": _one("courier", "env", 4, "value", value="none"),
}
AT_THE_COORDINATOR = {
    "superlink listens on loopback": _one("coordinator", "args", 4, value="0.0.0.0"),
    "the service leads to the door": _edit(
        "Service", "coordinator", ("spec", "ports", 0, "targetPort"), 8000
    ),
    "in through the door alone": _edit(
        "NetworkPolicy", "coordinator", ("spec", "ingress", 0, "ports", 0, "port"), 8000
    ),
    "the door is that of the compose file": _edit(
        "ConfigMap", "coordinator", ("data", "nginx.conf"), "events {}"
    ),
    "the door has no key but its own": _pod(
        "coordinator", "containers", 1, "volumeMounts", 0, "mountPath", value="/tls/ca.key"
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", GIVEN)
def test_kubernetes_takes_every_object_of_a_chart_strictly(name, version, rendered):
    from kubernetes_validate import validate

    assert rendered[name], "nothing would be taken without an objection"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the schemas' own library
        for one in rendered[name]:
            validate(one, version, strict=True)


def test_an_object_with_a_misspelt_key_is_refused(rendered):
    from kubernetes_validate import ValidationError, validate

    faulty = copy.deepcopy(rendered["hospital"])
    _pod("trainer", "hostNetwerk", value=True)(faulty)
    (pod,) = [one for one in faulty if "hostNetwerk" in str(one)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValidationError):
            validate(pod, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", GIVEN)
def test_a_pod_is_locked_down(name, rendered):
    assert unmet(demands_on_objects(rendered[name])) == set()


def test_a_chart_s_trainer_has_the_scans_and_no_network_its_courier_the_reverse(rendered):
    assert unmet(demands_on_the_pair(rendered["hospital"])) == set()


def test_a_chart_s_superlink_is_reached_through_the_door_alone(rendered):
    assert unmet(demands_on_the_door(rendered["coordinator"])) == set()


def test_a_chart_whose_hospitals_have_certificates_has_the_door_that_asks_for_them():
    objects = _render("coordinator", {**GIVEN["coordinator"], "door": {"clientAuthority": "sites"}})
    (config,) = [one["data"] for one in objects if one["kind"] == "ConfigMap"]
    asking = (DEPLOY / "nginx.clients.conf").read_text(encoding="utf-8")
    assert config["nginx.conf"].strip() == asking.strip()
    assert unmet(demands_on_objects(objects)) == set()
    assert unmet(demands_on_the_door(objects)) == {
        "the door is that of the compose file",
        "the door has no key but its own",
    }


def test_a_key_file_of_the_node_is_the_trainer_s_to_read_and_changes_nothing_for_the_courier(
    rendered,
):
    objects = _render("hospital", {**GIVEN["hospital"], "keyFile": "/media/keys/oncofed-key"})
    assert unmet(demands_on_objects(objects)) == set()
    assert unmet(demands_on_the_pair(objects)) == set()
    with_it, without = _pods(objects), _pods(rendered["hospital"])
    assert with_it["study-courier"] == without["study-courier"]
    (mount,) = [
        one
        for one in with_it["study-trainer"]["containers"][0]["volumeMounts"]
        if one["name"] == "key-file"
    ]
    assert mount == {"name": "key-file", "mountPath": "/run/secrets/oncofed-key", "readOnly": True}
    more = [
        one
        for one in with_it["study-trainer"]["volumes"]
        if one not in without["study-trainer"]["volumes"]
    ]
    assert more == [
        {"name": "key-file", "hostPath": {"path": "/media/keys/oncofed-key", "type": "File"}}
    ]


@pytest.mark.parametrize("demand", IN_ANY_CHART)
def test_a_planted_fault_in_any_pod_is_found(demand, rendered):
    *path, value = IN_ANY_CHART[demand]
    for name, component in (("hospital", "trainer"), ("coordinator", "coordinator")):
        faulty = copy.deepcopy(rendered[name])
        _pod(component, *path, value=value)(faulty)
        assert demand in unmet(demands_on_objects(faulty)), name


def test_a_pod_without_a_policy_is_found(rendered):
    faulty = [one for one in rendered["hospital"] if one["kind"] != "NetworkPolicy"]
    assert set(demands_on_objects(rendered["hospital"])) - set(IN_ANY_CHART) == {
        "a policy for every pod"
    }
    assert "a policy for every pod" in unmet(demands_on_objects(faulty))


@pytest.mark.parametrize("demand", IN_A_HOSPITAL)
def test_a_planted_fault_in_the_hospital_s_chart_is_found(demand, rendered):
    faulty = copy.deepcopy(rendered["hospital"])
    IN_A_HOSPITAL[demand](faulty)
    assert demand in unmet(demands_on_the_pair(faulty))
    assert set(IN_A_HOSPITAL) == set(demands_on_the_pair(faulty))


@pytest.mark.parametrize("demand", AT_THE_COORDINATOR)
def test_a_planted_fault_in_the_coordinator_s_chart_is_found(demand, rendered):
    faulty = copy.deepcopy(rendered["coordinator"])
    AT_THE_COORDINATOR[demand](faulty)
    assert demand in unmet(demands_on_the_door(faulty))
    assert set(AT_THE_COORDINATOR) == set(demands_on_the_door(faulty))


@pytest.mark.parametrize("name", GIVEN)
def test_a_chart_without_what_must_be_said_is_refused(name):
    from helm_python import HelmError

    for left_out in GIVEN[name]:
        if left_out != "proxy":
            less = {key: value for key, value in GIVEN[name].items() if key != left_out}
            with pytest.raises(HelmError):
                _render(name, less)


def test_the_trainer_s_profile_lets_it_leave_its_network_and_enter_no_other():
    text = (CHARTS / "hospital" / "oncofed-trainer.json").read_text(encoding="utf-8")
    (rule,) = json.loads(text)["syscalls"]
    assert {"setns", "mount", "ptrace", "bpf", "keyctl"} <= set(rule["names"])
    assert not {"unshare", "clone", "clone3"} & set(rule["names"])
