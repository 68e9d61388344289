"""Documents name every command that exists, none that does not, and spell each as it is."""

import importlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from house_commands import PROGRAMS, command_lines, commands_of, mentions, refusal, unknown

from oncofed_client.findings import RULES
from oncofed_client.intake.channels import SeriesRow
from oncofed_client.intake.names import MappingRow
from oncofed_client.intake.reasons import REASONS
from oncofed_client.intake.tables import TimedSession, TimedTreatment
from oncofed_client.readers.tables import LabelRow, ParticipantRow, SessionRow, TreatmentRow
from oncofed_common.terminal import command_of, run_app
from oncofed_server.verify import read_fingerprints

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [
    *GUIDES,
    *sorted(ROOT.glob("*/README.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
]
TOP = ("common", "client", "server", "simulation", "tests", "deploy", "benchmarks", "docs")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_line_in_a_document_is_one_that_its_program_takes(name):
    found = [refusal(words) for words in command_lines(TEXTS[name])]
    assert [why for why in found if why] == []


@pytest.mark.parametrize("name", TEXTS)
def test_no_document_mentions_a_command_or_option_that_there_is_not(name):
    assert [why for words in mentions(TEXTS[name]) if (why := unknown(words))] == []


def test_the_guides_show_every_command():
    shown = {
        tuple(words[:2])
        for path in GUIDES
        for words in command_lines(path.read_text(encoding="utf-8"))
    }
    there_are = {(program, name) for program in PROGRAMS for name in commands_of(program)}
    assert there_are - shown == set()


@pytest.mark.parametrize(
    "line",
    [
        "oncofed-site dance",
        "oncofed-site stop --home /srv/oncofed --gently",
        "oncofed-site stop",
        "docker compose run --rm site stop --house x",
    ],
)
def test_a_command_line_that_is_wrong_is_found(line):
    (words,) = command_lines(f"```\n{line}\n```\n")
    assert refusal(words)


@pytest.mark.parametrize("code", ["oncofed-site dance", "oncofed-site stop --gently"])
def test_a_mention_that_is_wrong_is_found(code):
    (words,) = mentions(f"Say `{code}`.")
    assert unknown(words)


@pytest.mark.parametrize("name", TEXTS)
def test_a_make_target_in_a_document_exists(name):
    code = " ".join(re.findall(r"`+[^`]+`+", TEXTS[name]))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) - set(TARGETS) == set()


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_within_the_house_leads_somewhere(name):
    folder = (ROOT / name).parent
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[name])
    within = [target for target in targets if "://" not in target]
    assert [target for target in within if not (folder / target).exists()] == []


@pytest.mark.parametrize("room", TOP)
def test_every_room_says_what_it_holds(room):
    text = TEXTS[f"{room}/README.md"]
    assert len(text.split()) > 40


@pytest.mark.parametrize("room", ["common", "client", "server", "simulation"])
def test_a_room_s_page_names_every_part_of_its_package(room):
    package = ROOT / room / f"oncofed_{room}"
    parts = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in package.iterdir()
        if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file()
    }
    text = TEXTS[f"{room}/README.md"]
    assert {part for part in parts if f"`{part}`" not in text} == set()
    named = set(re.findall(r"^\| `([a-z_]+(?:\.py|/))`", text, re.MULTILINE))
    assert named - parts == set()


def test_the_programs_of_the_documents_are_those_of_the_project():
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert set(re.findall(r"^(oncofed-\w+) = ", config, re.MULTILINE)) == set(PROGRAMS)


def test_the_extras_that_the_readme_installs_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"'\.\[([a-z,]+)\]'", TEXTS["README.md"])
    assert named
    for extras in named:
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("row", [ParticipantRow, SessionRow, TreatmentRow, LabelRow])
def test_the_guide_to_cohorts_names_every_column(row):
    for column in row.model_fields:
        assert f"`{column}`" in TEXTS["docs/cohort.md"]


def test_the_guide_to_cohorts_states_every_rule_of_the_check():
    for code, rule in RULES.items():
        line = f"| `{code}` | {rule.allowed} | {rule.excludes or 'by the kind of file'} |"
        assert line in TEXTS["docs/cohort.md"]


def test_the_guide_to_intake_states_every_reason_and_every_column():
    page = TEXTS["docs/intake.md"]
    for code, reason in REASONS.items():
        assert f"| `{code}` | {reason.found} | {reason.next} |" in page
    for row in (TimedSession, TimedTreatment, MappingRow, SeriesRow):
        assert [column for column in row.model_fields if f"`{column}`" not in page] == []


def test_the_guides_fingerprints_are_a_trust_file_and_its_lifetime_the_same_everywhere(tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", TEXTS["docs/coordinator.md"], re.DOTALL)
    (tmp_path / "fingerprints.json").write_text(block.replace("FINGERPRINT", "f" * 64))
    assert set(read_fingerprints(tmp_path / "fingerprints.json").sites) == {"north", "south"}
    pages = [TEXTS[name] for name in ("README.md", "docs/hospital.md", "deploy/README.md")]
    stated = [re.findall(r"--lifetime-epsilon (\d+)", page) for page in pages]
    assert stated == [["10"]] * 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_argument_and_option_is_explained_and_the_version_is_known(program, capsys):
    app = importlib.import_module(PROGRAMS[program]).app
    commands = command_of(app).commands
    silent = [
        f"{name} {one.name}"
        for name, command in commands.items()
        for one in command.params
        if not getattr(one, "help", None)
    ]
    assert silent == []
    assert run_app(app, ["--version"]) == 0
    assert capsys.readouterr().out == f"oncofed {importlib.metadata.version('oncofed')}\n"
    assert run_app(app, ["--help"]) == 0
    assert app.info.help.split(".")[0] in " ".join(capsys.readouterr().out.split())
