"""The privacy statement says what its study says, all of it, and nothing that somebody wrote into a title."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_builder import a_study

from oncofed_client.__main__ import app as site
from oncofed_common.statement import MARKUP, TOLD_OTHERWISE, statement
from oncofed_common.terminal import run_app
from oncofed_server.__main__ import app as coordinator
from oncofed_server.draft import study_toml


def _rows(text):
    table = text.split("## Every setting")[1]
    return dict(line[3:].split("` | ", 1) for line in table.splitlines() if line.startswith("| `"))


def _leaves(value, place=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*place, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            yield from _leaves(entry, (*place, entry["name"]))
    else:
        yield place, value


def _read(cell):
    return "".join(cell.removesuffix(" |").replace("\\", ""))


def test_every_setting_of_the_study_stands_in_the_table_with_its_value():
    study = a_study()
    told = _rows(statement(study))
    leaves = {
        ".".join(place): value
        for place, value in _leaves(study.model_dump(mode="json", exclude_none=True))
        if not {*place} & {*TOLD_OTHERWISE} and place[-1] != "name"
    }
    assert told.keys() == leaves.keys()
    for name, value in leaves.items():
        words = value if isinstance(value, list) else [value]
        assert _read(told[name]) == (", ".join(map(str, words)) or "none"), name


def test_metrics_are_told_with_their_groups_bound_and_noise_or_denied():
    plain = statement(a_study())
    assert "No metric." in plain
    told = statement(
        a_study(
            outbound={"metrics": ["all", "large"]},
            privacy={"metric_bound": 0.75, "metric_noise_multiplier": 6.5},
        )
    )
    for words in ("all, large", "each 0.75 at most", "6.5 times 0.75 times the root of 2"):
        assert words in " ".join(told.split())
    assert "No metric." not in told


@pytest.mark.parametrize(
    ("room", "key", "value", "said"),
    [
        ("privacy", "epsilon", 2.5, "(2.5, 1e-05)-differential privacy"),
        ("privacy", "epsilon", 2.5, "e^2.5 = 12.2 times as likely"),
        ("privacy", "delta", 1e-7, "a\nprobability of 1e-07."),
        ("privacy", "clip_norm", 0.125, "L2 norm C = 0.125."),
        ("privacy", "noise_multiplier", 3.5, "σ = 3.5 times C"),
        ("training", "sampling_rate", 0.375, "with probability 0.375"),
        ("training", "rounds", 7, "trains 14 steps: 7 rounds of 2."),
        ("training", "pairs_per_patient", 5, "at most\n5 of its visit pairs"),
        ("training", "draws_per_patient", 9, "each with 9 noise draws"),
        ("outbound", "bytes_per_round", 123_456, "at most 123,456 bytes"),
        ("outbound", "reply_after_s", 17, "It leaves 17 s after"),
        ("study", "release", "weights", "the release keeps\nnone."),
    ],
)
def test_the_prose_follows_the_study(room, key, value, said):
    assert said not in statement(a_study())
    assert said in statement(a_study(**{room: {key: value}}))


def test_what_leaves_is_counted_in_weights():
    study = a_study()
    count = sum(math.prod(tensor.shape) for tensor in study.tensors)
    assert f"the noised change of {count} weights in 2\ntensors" in statement(study)


def test_a_seeded_study_promises_nothing():
    seeded = statement(a_study(virtual={"seed": 4}))
    assert "**Guarantee.** None." in seeded
    assert "the seed 4" in seeded
    assert "operating system" not in seeded
    assert "None." not in statement(a_study())


@given(st.text(st.sampled_from([*MARKUP, "a", "$", "{"]), min_size=1, max_size=30))
def test_a_title_cannot_write_markdown_or_fill_in_a_blank(title):
    text = statement(a_study(study={"title": title}))
    first = text.splitlines()[0].removeprefix("# Privacy statement: ")
    assert first.replace("\\", "").replace("$", "") == title.replace("\\", "").replace("$", "")
    assert all(
        first[at - 1] == "\\" for at, letter in enumerate(first) if letter in MARKUP - {"\\"}
    )


@pytest.mark.parametrize("app", [site, coordinator])
def test_both_programs_print_it_and_refuse_what_is_no_study(app, tmp_path, capsys):
    study = a_study()
    file = tmp_path / "study.toml"
    file.write_text(study_toml(study), encoding="utf-8")
    assert run_app(app, ["statement", str(file)]) == 0
    assert capsys.readouterr().out == statement(study)
    assert run_app(app, ["statement", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "study": study.hash,
        "statement": statement(study),
    }
    file.write_text("[study]\n", encoding="utf-8")
    assert run_app(app, ["statement", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_the_page_in_the_documents_is_that_of_the_template(monkeypatch):
    docs = Path(__file__).parents[2] / "docs"
    monkeypatch.syspath_prepend(str(docs))
    import statement as script

    written = (docs / "privacy.md").read_text(encoding="utf-8")
    assert written == script.page(), "run .venv/bin/python docs/statement.py"
