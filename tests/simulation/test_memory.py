"""Memory that a patient needed is given back before the next one."""

import psutil

from oncofed_simulation.memory import hand_back

BLOCK, BLOCKS = 100_000, 3000
"""Below the size that the C library asks the system for one by one."""


def test_freed_pieces_between_kept_ones_go_back_to_the_system():
    process = psutil.Process()
    before = process.memory_info().rss
    blocks = [bytearray(BLOCK) for _ in range(BLOCKS)]
    kept = blocks[::50]
    full = process.memory_info().rss
    del blocks
    held = process.memory_info().rss
    hand_back()
    after = process.memory_info().rss
    assert full - before > 0.9 * BLOCK * BLOCKS
    assert held - before > 0.5 * BLOCK * BLOCKS, "without it the pieces stay"
    assert after - before < 0.2 * BLOCK * BLOCKS
    assert len(kept) == BLOCKS // 50
