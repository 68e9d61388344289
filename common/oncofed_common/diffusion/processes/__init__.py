"""Which generative processes can be chosen by name? One file each; a new one is a class and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from oncofed_common.diffusion.path import Process
from oncofed_common.diffusion.processes.ddpm import Ddpm
from oncofed_common.diffusion.processes.rectified_flow import RectifiedFlow
from oncofed_common.diffusion.processes.score_sde import ScoreSde

PROCESSES: Mapping[str, Process] = {
    "rectified_flow": RectifiedFlow(),
    "ddpm": Ddpm(),
    "score_sde": ScoreSde(),
}
DEFAULT = "rectified_flow"
