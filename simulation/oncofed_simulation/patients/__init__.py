"""Virtual hospitals: their patients, their scanners, and the cohorts they would write."""

from oncofed_simulation.patients.hospitals import Hospital, hospital
from oncofed_simulation.patients.patient import VirtualPatient, virtual_patient
from oncofed_simulation.patients.truth import Truth

__all__ = ["Hospital", "Truth", "VirtualPatient", "hospital", "virtual_patient"]
