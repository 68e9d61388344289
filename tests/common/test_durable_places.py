"""What stands in a place where a file is asked for is replaced only by its own kind."""

from __future__ import annotations

import json
import os

import pytest

from oncofed_common.durable import refuse_foreign
from oncofed_common.errors import SystemRefusal

KEYS = {"site", "address"}


def test_a_new_place_and_an_earlier_file_of_the_same_kind_are_taken(tmp_path):
    place = tmp_path / "answer.json"
    refuse_foreign(place, keys=KEYS, what="an answer")
    place.write_text(json.dumps({"site": "north", "address": "a:1", "more": 1}))
    refuse_foreign(place, keys=KEYS, what="an answer")
    assert json.loads(place.read_text())["more"] == 1


@pytest.mark.parametrize("kind", ["key", "other", "link", "dangling", "pipe", "folder", "device"])
def test_nothing_else_is_ever_replaced(tmp_path, kind):
    place = tmp_path / "place"
    earlier = tmp_path / "earlier"
    earlier.write_text(json.dumps({"site": "north", "address": "a:1"}))
    match kind:
        case "key":
            place.write_text("-----BEGIN PRIVATE KEY-----")
        case "other":
            place.write_text(json.dumps({"site": "north"}))
        case "link":
            place.symlink_to(earlier)
        case "dangling":
            place.symlink_to(tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "device":
            place = type(place)("/dev/null")
    with pytest.raises(SystemRefusal) as caught:
        refuse_foreign(place, keys=KEYS, what="an answer")
    assert caught.value.code == "out_exists"
