"""The trainer: it has the scans and the ledger, and no network."""
