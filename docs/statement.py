"""The page docs/privacy.md: the privacy statement of the settings that ``draft --template`` prints.

    .venv/bin/python docs/statement.py

Three hospitals that exist nowhere are invited, so that it is a whole study.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from oncofed_common.privacy.accountant import noise_multiplier_for
from oncofed_common.statement import statement
from oncofed_common.study import Study
from oncofed_server.base import base_of_preset, file_sha256, trained_tensors
from oncofed_server.draft import template

PAGE = Path(__file__).with_name("privacy.md")
PATIENTS = 60
WHOSE = """This is the statement of an example: the settings that `oncofed-coordinator draft --template`
prints, for three hospitals. That of your study: `oncofed-coordinator statement study.toml` or
`oncofed-site statement study.toml`.
"""


def page() -> str:
    """The whole page."""
    title, rest = statement(example()).split("\n\n", maxsplit=1)
    return f"{title}\n\n{WHOSE}\n{rest}"


def example() -> Study:
    """A study of the template's settings."""
    fields = tomllib.loads(template())
    preset, adapters = fields["model"]["preset"], fields["model"]["adapters"]
    training, privacy = fields["training"], fields["privacy"]
    base = base_of_preset(preset)
    fields["model"]["base_sha256"] = file_sha256(base)
    privacy["noise_multiplier"] = noise_multiplier_for(
        epsilon=privacy["epsilon"],
        delta=privacy["delta"],
        rate=training["sampling_rate"],
        steps=training["rounds"] * training["steps_per_round"],
    )
    fields["sites"] = [
        {
            "name": name,
            "fingerprint": f"{number:064x}",
            "declared_patients": PATIENTS,
            "weight": PATIENTS,
        }
        for number, name in enumerate(("north", "east", "south"))
    ]
    fields["tensors"] = [
        {"name": one.name, "shape": list(one.shape), "dtype": one.dtype}
        for one in trained_tensors(base, preset=preset, adapters=adapters)
    ]
    return Study.model_validate(fields)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
