"""What can go wrong, as one family.

    OncofedError                 exit 1: it failed
    └── Refusal                  exit 2: it was not allowed, or the input was bad
        ├── UsageRefusal         a command line that cannot be read
        ├── StudyRefusal         a study that is malformed, expired, unsigned or dearer than it says
        ├── IdentityRefusal      a key, certificate or signature that does not hold
        ├── WireRefusal          a task, reply or tensor file that is not what was agreed
        ├── CohortRefusal        a cohort, scan or table that breaks the cohort contract
        ├── ModelRefusal         weights or a preset that do not fit each other
        ├── PhysicsRefusal       a growth law, tissue map or grid that the solver cannot carry
        ├── PrivacyRefusal       a setting under which no privacy can be stated
        ├── BudgetRefusal        a charge that the ledger or the policy has no room for
        ├── PolicyRefusal        what the site's approver has not allowed
        └── SystemRefusal        a port, disk, socket or process that is not as it must be

Every error says what was found, what was allowed and what to do next, in that order. None holds a
patient's name or identifier, a file path, or the text of another exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class OncofedError(Exception):
    """What was found, what was allowed, and what to do next."""

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "failed"

    def __init__(self, found: str, *, allowed: str, next: str, code: str | None = None) -> None:
        self.found = found
        self.allowed = allowed
        self.next = next
        self.code = code or self.default_code
        self.facts: dict[str, Any] = {}
        super().__init__(f"{found}; allowed: {allowed}; next: {next}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole across processes: pickle would call the constructor with the message alone."""
        return _again, (type(self), self.as_dict(), self.facts)

    def as_dict(self) -> dict[str, str]:
        """The fields of the ``error`` object that ``--json`` prints."""
        return {"code": self.code, "found": self.found, "allowed": self.allowed, "next": self.next}

    def beside(self, facts: Mapping[str, Any]) -> OncofedError:
        """This error, with what was found out all the same: ``--json`` prints it beside ``error``."""
        self.facts = dict(facts)
        return self


def _again(kind: type[OncofedError], words: dict[str, str], facts: dict[str, Any]) -> OncofedError:
    return kind(**words).beside(facts)


class Refusal(OncofedError):
    """Bad input, or something that study, policy or budget do not allow."""

    exit_code = 2
    default_code = "refused"


class UsageRefusal(Refusal):
    """A command line that cannot be read."""

    default_code = "usage"


class StudyRefusal(Refusal):
    """A study that is malformed, expired, unsigned, or dearer than it says."""

    default_code = "study"


class IdentityRefusal(Refusal):
    """A key, certificate or signature that does not hold."""

    default_code = "identity"


class WireRefusal(Refusal):
    """A task, reply or tensor file that is not what was agreed."""

    default_code = "wire"


class CohortRefusal(Refusal):
    """A cohort, scan or table that breaks the cohort contract."""

    default_code = "cohort"


class ModelRefusal(Refusal):
    """Weights or a preset that do not fit each other."""

    default_code = "model"


class PhysicsRefusal(Refusal):
    """A growth law, tissue map or grid that the solver cannot carry."""

    default_code = "physics"


class PrivacyRefusal(Refusal):
    """A setting under which no privacy can be stated."""

    default_code = "privacy"


class BudgetRefusal(Refusal):
    """A charge for which ledger or policy have no room."""

    default_code = "budget"


class PolicyRefusal(Refusal):
    """What the site's approver has not allowed."""

    default_code = "policy"


class SystemRefusal(Refusal):
    """A port, disk, socket or process that is not as it must be."""

    default_code = "system"
