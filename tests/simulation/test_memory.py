"""Memory that a patient needed is given back before the next one."""

import json
import subprocess
import sys

BLOCK, BLOCKS = 100_000, 3000
"""Below the size that the C library asks the system for one by one."""
STEPS = f"""
import json, psutil
from oncofed_simulation.memory import hand_back
size = lambda: psutil.Process().memory_info().rss
sizes = [size()]
blocks = [bytearray({BLOCK}) for _ in range({BLOCKS})]
kept = blocks[::50]
sizes.append(size())
del blocks
sizes.append(size())
hand_back()
sizes.append(size())
print(json.dumps(sizes))
"""


def test_freed_pieces_between_kept_ones_go_back_to_the_system():
    """In a process of its own, whose heap holds nothing else."""
    ran = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    before, full, held, after = json.loads(ran.stdout)
    assert full - before > 0.9 * BLOCK * BLOCKS
    assert held - before > 0.5 * BLOCK * BLOCKS, "without it the pieces stay"
    assert after - before < 0.2 * BLOCK * BLOCKS
