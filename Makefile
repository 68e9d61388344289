# Each target works on a fresh clone with Python 3.11, make and a package index.
PYTHON ?= python3.11
BIN := .venv/bin
export PYTHONHASHSEED := 0
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
# Else each of hundreds of processes that tests start compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# Benchmarks that forecast hundreds of patients, or train on them: some minutes to some hours each.
HOURS := forecast samplers distil federation residuals

.PHONY: audit demo test check check-long check-kills check-containers bench bench-forecast bench-federation images bundle lint lock clean

demo: .venv/ready
	$(BIN)/oncofed-simulate demo --out demo-out

# One torch thread a process: two processes share the two cores.
test check-long check-kills check-containers: export OMP_NUM_THREADS := 1

test: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile

check: lint test

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

# Tests that share out their work to both cores; the others run real processes, which need them.
SHARED := tests/house/test_planted_faults.py tests/server/test_schedules.py tests/server/test_crash_run.py \
  tests/common/test_privacy_ways.py tests/common/test_privacy_conformance.py tests/client/test_crash_planted.py \
  tests/simulation/test_audit_attacks.py tests/simulation/test_guides_run.py \
  tests/simulation/test_pretrain_killed.py tests/client/test_intake_space.py

check-long: .venv/ready
	$(BIN)/pytest -m "(slow or faults or container) and not hours" --timeout 1200 $(SHARED:%=--ignore %)
	$(BIN)/pytest -n 2 --dist loadgroup -m "slow or faults" --timeout 1200 $(SHARED)

# Every process of a federation killed in every moment of a round; bad links; the rest of a thousand schedules.
check-kills: .venv/ready
	$(BIN)/pytest -m hours tests/simulation
	$(BIN)/pytest -n 2 -m hours tests/server/test_schedules.py

# Images built from nothing, and a study in containers: root, podman and mmdebstrap.
check-containers: .venv/ready
	$(BIN)/pytest -m container tests/deploy

# Attacks on the shipped engine; a refuted claim fails. A release prints its table.
audit: .venv/ready
	$(BIN)/oncofed-simulate audit

bench: .venv/ready
	@failed=0; for script in $(filter-out $(HOURS:%=benchmarks/%.py),$(wildcard benchmarks/[a-z]*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script --json bench-out/$$(basename $$script .py).json || failed=1; \
	done; exit $$failed

bench-forecast: .venv/ready
	$(BIN)/python benchmarks/forecast.py --json bench-out/forecast.json
	$(BIN)/python benchmarks/samplers.py --json bench-out/samplers.json
	$(BIN)/python benchmarks/distil.py --json bench-out/distil.json
	$(BIN)/python benchmarks/residuals.py --json bench-out/residuals.json

bench-federation: .venv/ready
	$(BIN)/python benchmarks/federation.py --choose --json bench-out/adapters.json
	$(BIN)/python benchmarks/federation.py --json bench-out/federation.json

# Images, by podman; IMAGE_FLAGS holds whatever else podman build should be told (an index, a base image).
VERSION := 0.1.0
IMAGES := trainer courier coordinator
images:
	for role in $(IMAGES); do \
	  podman build --format docker -f deploy/$$role.Containerfile -t localhost/oncofed-$$role:$(VERSION) $(IMAGE_FLAGS) . || exit 1; \
	done

# Everything that a machine without internet needs, signed: make bundle KEY=release.pem OUT=oncofed-0.1.0
bundle: .venv/ready
	$(BIN)/python deploy/bundle.py --version $(VERSION) --key "$(KEY)" --out "$(OUT)"

# The lock file is a constraints file: exact versions, the same for every extra and image.
lock: .venv/ready
	$(BIN)/python deploy/lock.py > requirements.lock.tmp && mv requirements.lock.tmp requirements.lock

.venv/ready: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -c 'import sys; assert sys.version_info[:2] == (3, 11), "oncofed needs Python 3.11"'
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[simulation,dev]'
	touch .venv/ready

clean:
	rm -rf .venv demo-out bench-out build dist
