"""Shapes and types are checked on every call of our own code, in every test."""

from jaxtyping import install_import_hook

install_import_hook(
    ["oncofed_common", "oncofed_client", "oncofed_server", "oncofed_simulation"],
    "beartype.beartype",
)
