"""Print the exact versions of everything installed, as constraints: ``make lock`` keeps them."""

from __future__ import annotations

import re
from importlib.metadata import distributions

OURS = {"oncofed", "pip", "setuptools", "wheel"}
CUDA = re.compile(r"^(nvidia-|cuda-|triton$)")  # come with torch, in the versions that torch names


def main() -> None:
    """One line a distribution, in order of name; local version labels (+cpu) are dropped."""
    rows = {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower(): found.version.split("+")[0]
        for found in distributions()
    }
    print("# Exact versions of every dependency; made by `make lock`, used by Makefile and images.")
    for name in sorted(rows):
        if name not in OURS and not CUDA.match(name):
            print(f"{name}=={rows[name]}")


if __name__ == "__main__":
    main()
