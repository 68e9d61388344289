"""How large a piece of a message travels at once, at both ends.

Flower asks for each piece of an array by a request of its own, and repeats what failed. So a link that is cut
every few seconds still carries a long update: what has arrived is not sent again.
"""

from __future__ import annotations

from collections.abc import Mapping

PIECE_BYTES = 256 * 1024
"""Half a second at 4 Mbit/s; the update of an adapter is one piece."""

PIECES: Mapping[str, str] = {"FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES)}
"""Of the environment of every process that runs Flower."""
