"""``oncofed-coordinator``: everything that the coordinator of a federation does.

Each command checks its words, calls one function of the house, and prints what came out.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.passphrase import read_passphrase
from oncofed_common.screen import console, print_json, print_text, show
from oncofed_common.terminal import add_version, run_app
from oncofed_server.run_commands import HomeOption, JsonOption, register

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The coordinator's side of oncofed: who takes part, what is asked, what came of it.",
)
add_version(app)

PassphraseOption = Annotated[
    Path, typer.Option("--passphrase-file", help="file that holds the study key's passphrase")
]
BaseOption = Annotated[
    Path | None, typer.Option(help="base weights; without it those shipped with oncofed")
]


@app.command()
def init(
    home: HomeOption,
    name: Annotated[str, typer.Option(help="the coordinator's name: a-z, 0-9 and -")],
    address: Annotated[str, typer.Option(help="host:port at which the sites will reach it")],
    passphrase_file: PassphraseOption,
    task_key_days: Annotated[
        int,
        typer.Option(min=1, max=3650, help="days that the task key's certificate lasts at least"),
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """Make the study key, the task key and a certificate authority in a new home folder."""
    from oncofed_common.identity import PublicKey
    from oncofed_server.home import init_home

    roster = init_home(
        home,
        name=name,
        address=address,
        passphrase=read_passphrase(passphrase_file, new=True),
        task_key_days=task_key_days,
        now_s=_now_s(),
    )
    fingerprint = PublicKey(roster.coordinator.study_key).fingerprint
    show({"coordinator": name, "address": address, "fingerprint": fingerprint}, as_json=as_json)


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(help="the site's enrolment request")],
    home: HomeOption,
    out: Annotated[Path, typer.Option(help="where to write the answer for the site")],
    as_json: JsonOption = False,
) -> None:
    """Take a site in, and write the answer to send back to it."""
    from oncofed_common.durable import refuse_foreign, write_atomic
    from oncofed_common.identity import PublicKey, canonical
    from oncofed_server import registry
    from oncofed_server.roster import read_roster

    address = read_roster(home).coordinator.address
    if not out.parent.is_dir() or out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageRefusal(
            "an answer in a place where no file can be written",
            allowed="a file in an existing folder that this user may write to",
            next="make the folder, or name another file with --out",
        )
    refuse_foreign(out, keys={"site", "ca_pem", "coordinator_key"}, what="an answer")
    if out.exists():
        raise UsageRefusal(
            "an answer that is there already, perhaps of another site",
            allowed="a file that is not there yet",
            next="name another file with --out, or take that one away",
        )
    answer = registry.enrol(
        home, request, address=address, ca_pem=registry.read_ca(home), now_s=_now_s()
    )
    write_atomic(out, canonical(answer))
    member = read_roster(home).member(answer["site"])
    rows = {
        "site": answer["site"],
        "site_fingerprint": member.fingerprint if member else "",
        "coordinator_fingerprint": PublicKey(answer["coordinator_key"]).fingerprint,
        "answer": str(out),
    }
    show(rows, as_json=as_json)


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="the site's name")],
    home: HomeOption,
    as_json: JsonOption = False,
) -> None:
    """Leave a site out from the next round on; its name is not given again."""
    from oncofed_server import registry

    roster = registry.revoke(home, site)
    show({"revoked": site, "revocation_epoch": roster.revocation_epoch}, as_json=as_json)


@app.command()
def draft(
    settings: Annotated[
        Path | None, typer.Argument(help="settings: a study without sites, tensors, base_sha256")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", envvar="ONCOFED_COORDINATOR_HOME", help="the coordinator's home folder"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the study file to write")] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="a site to invite; repeatable; none: all that are not revoked"),
    ] = None,
    base: BaseOption = None,
    template: Annotated[
        bool, typer.Option("--template", help="print settings to change, and do nothing else")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fill in a study from settings: sites, tensors, base weights, the least noise for its epsilon."""
    from oncofed_common.durable import write_atomic
    from oncofed_server.draft import study_toml
    from oncofed_server.draft import template as settings_template
    from oncofed_server.roster import read_roster
    from oncofed_server.settings import complete, read_settings
    from oncofed_server.studies import refuse_unpublishable

    if template:
        text = settings_template()
        if as_json:
            print_json({"template": text})
        else:
            print_text(text)
        return
    if settings is None or home is None or out is None:
        raise UsageRefusal(
            "draft without settings, --home or --out",
            allowed="all three, or --template alone",
            next="run oncofed-coordinator draft --help",
        )
    if out.exists():
        raise UsageRefusal(
            "an output file that exists already",
            allowed="a new file: neither settings nor an earlier draft are overwritten",
            next="name another file with --out",
            code="out_exists",
        )
    roster = read_roster(home)
    terms = complete(read_settings(settings), roster, sites=site, base=base, expires=None)
    refuse_unpublishable(terms, roster, now_s=_now_s())
    write_atomic(out, study_toml(terms).encode())
    rows = {
        "drafted": str(out),
        "hash": terms.hash,
        "sites": [invited.name for invited in terms.sites],
        "weights": [invited.weight for invited in terms.sites],
        "tensors": len(terms.tensors),
        "noise_multiplier": terms.privacy.noise_multiplier,
        "epsilon": terms.privacy.epsilon,
        "delta": terms.privacy.delta,
    }
    show(rows, as_json=as_json, title="A study to read, and then to publish")


@app.command()
def statement(
    study: Annotated[Path, typer.Argument(help="the study file")], as_json: JsonOption = False
) -> None:
    """Print what patients are promised under a study: the privacy statement, as Markdown."""
    from oncofed_common.statement import show_statement

    show_statement(study, as_json=as_json)


@app.command()
def publish(
    study: Annotated[Path, typer.Argument(help="the study file")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a study, say what it costs every patient, and sign it."""
    from oncofed_common.study import read_study
    from oncofed_server.base import shipped_base
    from oncofed_server.studies import publish as check_and_sign

    weights = base or shipped_base(read_study(study))
    if weights is None:
        raise SystemRefusal(
            "base weights that are not among those installed here",
            allowed="base weights with the SHA-256 that the study names",
            next="name the file with --base, or correct model.base_sha256",
            code="base_hash",
        )
    terms, cost = check_and_sign(
        home,
        study,
        base=weights,
        passphrase=read_passphrase(passphrase_file, new=False),
        now_s=_now_s(),
    )
    rows = {
        "published": terms.hash,
        "folder": str(home / "studies" / terms.hash),
        "epsilon": cost.epsilon_stated,
        "epsilon_recomputed": round(cost.epsilon_pld, 4),
        "delta": cost.delta,
        "steps": cost.steps,
        "rounds": terms.training.rounds,
        "bytes_out_per_site": terms.training.rounds * terms.outbound.bytes_per_round,
        "sites": [site.name for site in terms.sites],
        "seeded": terms.virtual is not None,
    }
    show(rows, as_json=as_json, title="What this study costs every patient of every site")


@app.command()
def start(
    home: HomeOption,
    host: Annotated[str, typer.Option(help="address to listen on, behind a proxy")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="default: the one sites were told")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Prometheus asks here, on this machine only"),
    ] = None,
) -> None:
    """Run SuperLink and SuperExec until stopped; runs are then begun with run."""
    from oncofed_server.operate import serve
    from oncofed_server.roster import read_roster

    told = int(read_roster(home).coordinator.address.rpartition(":")[2])
    screen = console()
    serve(
        home,
        host=host,
        port=port or told,
        metrics_port=metrics_port,
        on_up=lambda at: screen.print(f"SuperLink answers on port {at}; Ctrl-C ends it"),
    )


register(app)  # between start and verify, as --help lists them


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(help="the release folder")],
    audit: Annotated[Path | None, typer.Option(help="the audit folder: recompute sums")] = None,
    trust: Annotated[
        Path | None, typer.Option(help="JSON file of fingerprints that you got elsewhere")
    ] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute and check everything in a release, offline."""
    from oncofed_server.verify import read_fingerprints
    from oncofed_server.verify import verify as check

    known = read_fingerprints(trust) if trust is not None else None
    verdict = check(release, audit=audit, trust=known, base=base)
    failure = verdict.failure()
    if as_json and failure is None:
        print_json(verdict.as_dict())
    if not as_json:
        rows: dict[str, Any] = {
            "result": verdict.result,
            "trust": verdict.trust,
            "not_proven": verdict.not_proven,
            "run": verdict.status or "-",
            "files": verdict.files,
            "rounds": verdict.rounds,
            "replies": verdict.replies,
            "sums_recomputed": verdict.sums,
        }
        show(rows, as_json=False, title="Release")
    if failure is not None:
        raise failure.beside(verdict.as_dict())


def _now_s() -> int:
    return int(time.time())


def main() -> None:
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
