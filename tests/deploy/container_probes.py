"""Small programs that look around from inside a container; each prints one JSON object."""

LOCKED = r"""
import glob, importlib.util, json, os, socket
def told(path):
    return dict(line.split(":\t", 1) for line in open(path).read().splitlines() if ":\t" in line)
status = [told(path) for path in glob.glob("/proc/[0-9]*/status")]
def refused(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        return False
    except OSError as error:
        return os.strerror(error.errno)
def reach(family, address):
    try:
        socket.socket(family, socket.SOCK_DGRAM).connect((address, 9))
        return "a route"
    except OSError as error:
        return os.strerror(error.errno)
print(json.dumps({
    "capabilities": sorted({int(s[name], 16) for s in status for name in s if name.startswith("Cap")}),
    "no new privileges": sorted({s["NoNewPrivs"].strip() for s in status}),
    "seccomp": sorted({s["Seccomp"].strip() for s in status}),
    "users": sorted({int(u) for s in status for u in s["Uid"].split()}),
    "processes": len(status),
    "root": {path: refused(path) for path in ("/x", "/opt/venv/x", "/home/oncofed/x", "/usr/bin/x")},
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "routes": [line for line in open("/proc/net/route").read().splitlines()[1:]],
    "reach": [reach(socket.AF_INET, "192.0.2.1"), reach(socket.AF_INET6, "2001:db8::1")],
    "packages": list(filter(importlib.util.find_spec, ("flwr", "httpx", "torch", "nibabel", "pip"))),
    "programs": [n for n in ("uv", "uvx", "pip") if os.path.exists("/opt/venv/bin/" + n)],
    "files": sorted(os.listdir("/home/oncofed")),
    "core": open("/proc/self/limits").read().split("Max core file size")[1].split()[0],
}))
"""

UNREADABLE = r"""
import json, os
found = {}
for path in ("/cohort", "/identities.tsv", "/home/oncofed/trainer", "/home/oncofed/approver"):
    try:
        os.close(os.open(path, os.O_RDONLY))
        found[path] = "open"
    except OSError as error:
        found[path] = os.strerror(error.errno)
print(json.dumps(found))
"""

REACHED = r"""
import json, socket, sys
found = {}
for word in sys.argv[1:]:
    host, _, port = word.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 3):
            found[word] = "open"
    except OSError as error:
        found[word] = type(error).__name__
print(json.dumps(found))
"""

OPEN_PORTS = r"""
import json, socket, sys
host, found = socket.gethostbyname(sys.argv[1]), []
for port in range(1, 65536):
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex((host, port)) == 0:
            found.append(port)
print(json.dumps({"open": found}))
"""
