"""Attacks on the shipped engine: what can be learnt about one patient, against what was promised."""
