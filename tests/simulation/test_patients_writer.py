"""Cohorts of virtual hospitals: the contract, the same bytes, all or nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from threadpoolctl import threadpool_info

from oncofed_client.check import check
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.cohort import Patient
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.terminal import run_app
from oncofed_common.workers import each
from oncofed_simulation.__main__ import app
from oncofed_simulation.memory import one_thread
from oncofed_simulation.patients import hospital, virtual_patient
from oncofed_simulation.patients.hospitals import COHORT_SEEDS
from oncofed_simulation.patients.writer import wards_of, write_cohorts

SEED = 11


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def write(out: Path, **change) -> dict[Path, int]:
    asked = {"sites": 2, "patients": 1, "seed": SEED, "workers": 1, "progress": silent} | change
    wards = wards_of(
        **{name: asked.pop(name) for name in ("sites", "patients")}, seed=asked["seed"]
    )
    return write_cohorts(wards, out=out, **asked)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def grown() -> dict[int, Patient]:
    """The patient of each of the two hospitals, as it was grown."""
    return {
        number: virtual_patient(hospital(SEED, number), seed=SEED, number=1).patient
        for number in (1, 2)
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("virtual") / "cohorts"
    paths = write(out)
    assert list(paths) == [out / "hospital-1", out / "hospital-2"]
    counted = [len(list(path.glob("sub-*/ses-*"))) for path in paths]
    assert list(paths.values()) == counted
    return out


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(written, tmp_path):
    write(tmp_path / "again", workers=2)
    assert digests(tmp_path / "again") == digests(written)


def threads(_job: int) -> list[int]:
    return [library["num_threads"] for library in threadpool_info()]


def test_a_process_that_makes_patients_uses_one_thread(monkeypatch):
    """Two processes share two cores; threads that wait would take the other's."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for _, found in each(threads, [0, 1], workers=2, prepare=one_thread):
        assert found
        assert set(found) == {1}


def test_a_cohort_holds_the_contract_and_nothing_else(written, grown):
    cohort = written / "hospital-1"
    (folder,) = cohort.glob("sub-*")
    name = folder.name
    patient = grown[1]
    expected = {
        "dataset_description.json",
        "participants.tsv",
        "participants.json",
        "derivatives/tumor/dseg.tsv",
        f"{name}/{name}_sessions.tsv",
        f"{name}/{name}_treatments.tsv",
        f"derivatives/tissue/{name}/{name}_dseg.nii.gz",
        f"derivatives/tissue/{name}/{name}_desc-brain_mask.nii.gz",
    }
    for visit in patient.visits:
        stem = f"{name}_{visit.session}"
        anat = f"{name}/{visit.session}/anat"
        expected |= {f"{anat}/{stem}_{channel}.nii.gz" for channel in visit.images}
        expected.add(f"derivatives/tumor/{anat}/{stem}_desc-tumor_dseg.nii.gz")
        if visit.dose_gy is not None:
            expected.add(f"derivatives/tumor/{anat}/{stem}_desc-planned_dose.nii.gz")
    assert set(digests(cohort)) == expected
    assert len(name) == len("sub-") + 8
    int(name.removeprefix("sub-"), 16)


def test_the_site_s_reader_finds_what_was_grown_and_no_fault(written, grown):
    for number in (1, 2):
        report = check(written / f"hospital-{number}")
        assert report.findings == ()
        cohort = read_cohort(written / f"hospital-{number}")
        assert cohort.virtual
        patient = grown[number]
        assert cohort.participants == (patient.participant,)
        read = read_patient(cohort, patient.participant)
        assert read.treatments == patient.treatments
        for was, found in zip(patient.visits, read.visits, strict=True):
            assert (found.session, found.day, found.kps) == (was.session, was.day, was.kps)
            np.testing.assert_array_equal(found.tumor.data, was.tumor.data)
            np.testing.assert_allclose(found.tumor.affine_mm, was.tumor.affine_mm, atol=1e-4)
            for channel, image in was.images.items():
                np.testing.assert_array_equal(found.images[channel].data, image.data)


def test_truth_and_hospital_numbers_lie_beside_the_cohort_and_never_in_it(written):
    identities = (written / "hospital-1.identities.tsv").read_text().splitlines()
    (row,) = csv.DictReader(identities, delimiter="\t")
    truth = json.loads((written / "truth" / "hospital-1.json").read_text())
    (patient,) = truth["patients"]
    assert patient["participant_id"] == row["participant_id"]
    assert patient["growth"]["rate_per_day"] > 0
    assert patient["dx_over_width_white"] <= 1 < patient["dx_over_width_grey"]
    assert patient["coarse"] == ["grey"]
    volumes = patient["worlds_volume_ml"]
    assert volumes["actual"] == patient["volume_ml"]
    with np.load(written / "truth" / "hospital-1" / f"{row['participant_id']}.npz") as fields:
        assert fields["days"].tolist() == patient["visit_days"]
        swelling = patient["swelling"]["strain"] * 1.4 / 0.6
        for name, of_world in volumes.items():
            density = fields[f"{name}_viable"] / 250 + fields[f"{name}_debris"] / 250
            swollen = np.where(density > 0.25, 1 + swelling * density, 0)
            counted = swollen.sum(axis=(1, 2, 3)) * 27 / 1000
            assert counted == pytest.approx(of_world, rel=0.15, abs=0.3)
    tables = [p for p in (written / "hospital-1").rglob("*") if p.suffix in {".tsv", ".json"}]
    assert len(tables) == 6
    for table in tables:
        assert row["hospital_number"] not in table.read_text()
        assert "rate_per_day" not in table.read_text()


def test_a_folder_in_use_is_refused_and_left_alone(written, capsys):
    before = digests(written)
    with pytest.raises(SystemRefusal) as caught:
        write(written)
    assert caught.value.code == "out_exists"
    arguments = ["cohort", "--sites", "1", "--patients", "1", "--seed", "1"]
    assert run_app(app, [*arguments, "--out", str(written), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "out_exists"
    assert digests(written) == before


def stop_after(count: int):
    def stop(what: str, done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return stop


def test_what_is_interrupted_goes_on_where_it_was_and_gives_the_same_bytes(
    tmp_path, written, grown
):
    """The patient that was finished is not made again; the one that was not is made whole."""
    out, draft = tmp_path / "cohorts", tmp_path / ".cohorts.tmp"
    with pytest.raises(KeyboardInterrupt):
        write(out, progress=stop_after(1))
    assert [child.name for child in tmp_path.iterdir()] == [".cohorts.tmp"]
    (first,) = (draft / "hospital-1").glob("sub-*")
    made_at = {p: p.stat().st_mtime_ns for p in first.rglob("*.nii.gz")}
    other = grown[2].participant
    (draft / "hospital-2" / other).mkdir(parents=True)
    (draft / "hospital-2" / other / "half.nii.gz").write_text("half")
    seen: list[int] = []
    write(out, progress=lambda what, done, total: seen.append(done))
    assert seen == [1, 2]
    assert digests(out) == digests(written)
    assert {out / p.relative_to(draft): t for p, t in made_at.items()} == {
        p: p.stat().st_mtime_ns for p in (out / "hospital-1" / first.name).rglob("*.nii.gz")
    }


@pytest.mark.slow
def test_what_was_begun_for_another_plan_is_not_gone_on_with(tmp_path, written):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cohorts", seed=SEED + 1, sites=1, progress=stop_after(1))
    seen: list[int] = []
    write(tmp_path / "cohorts", sites=1, progress=lambda what, done, total: seen.append(done))
    assert seen[0] == 0
    assert digests(tmp_path / "cohorts") == {
        name: of for name, of in digests(written).items() if "hospital-2" not in name
    }


@pytest.mark.faults
def test_a_command_that_ends_early_however_it_ends_is_gone_on_with(tmp_path):
    words = ["-m", "oncofed_simulation", "cohort", "--sites", "1", "--patients", "50"]
    words += ["--workers", "1", "--out", "cohorts"]
    draft = tmp_path / ".cohorts.tmp"
    for number, status in ((signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGKILL, -9)):
        before = len(list(draft.glob("notes/*/*.json")))
        child = subprocess.Popen([sys.executable, *words], cwd=tmp_path, stderr=subprocess.PIPE)
        assert child.stderr is not None
        with child.stderr as said:
            while len(list(draft.glob("notes/*/*.json"))) == before:
                assert child.poll() is None
                time.sleep(0.05)
            with pytest.raises(SystemRefusal) as caught:
                write(tmp_path / "cohorts")
            assert caught.value.code == "output_in_use"
            child.send_signal(number)
            assert child.wait(timeout=30) == status
            assert said.read().count(b"\n") <= 1
        assert list(tmp_path.iterdir()) == [draft]
    assert len(list(draft.glob("notes/*/*.json"))) >= 3
    (path, other) = write(tmp_path / "cohorts")
    assert len(list(path.glob("sub-*"))) == len(list(other.glob("sub-*"))) == 1
    assert [child.name for child in tmp_path.iterdir()] == ["cohorts"]


@pytest.mark.faults
def test_processes_that_make_patients_die_with_the_one_that_started_them(tmp_path):
    script = (
        "from pathlib import Path\n"
        "from oncofed_simulation.patients.writer import wards_of, write_cohorts\n"
        "if __name__ == '__main__':\n"
        "    wards = wards_of(sites=1, patients=500, seed=1)\n"
        "    write_cohorts(wards, seed=1, workers=2, out=Path('out'),\n"
        "                  progress=lambda *_: print('alive', flush=True))\n"
    )
    (tmp_path / "make.py").write_text(script)
    parent = subprocess.Popen([sys.executable, "make.py"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as said:
        said.readline()
        said.readline()
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
        parent.wait(timeout=10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_a_disk_that_does_not_take_the_files_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemRefusal) as caught:
        write(tmp_path / "file" / "cohorts")
    assert caught.value.code == "disk"
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sites": 0},
        {"sites": 1_001},
        {"patients": -1},
        {"patients": 10_001},
        {"workers": 0},
        {"seed": -1},
        {"seed": COHORT_SEEDS},
    ],
)
def test_numbers_that_make_no_cohort_are_refused(tmp_path, wrong):
    with pytest.raises(UsageRefusal):
        write(tmp_path / "cohorts", **wrong)
    assert list(tmp_path.iterdir()) == []
