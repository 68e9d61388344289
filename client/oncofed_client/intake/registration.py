"""Which rigid (or affine) move lays one head on another?

Nothing is resampled for good: a move is a 4 x 4 matrix from world to world, and whoever applies it changes
a file's affine, not its voxels. Both heads are sampled onto axis-aligned lattices in world millimetres; the
Mattes mutual information of the two (IEEE Trans. Med. Imaging 22, 2003) is climbed from coarse to fine,
which asks for no common contrast. One thread adds up the same points each time: the same files give the
same move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name for it
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_client.intake.lattice import Lattice, foreground, on_lattice
from oncofed_common.cohort import Volume

PITCH_MM = 3.0
BINS = 32
SHARE, SEED = 0.3, 1
"""Of the points of a lattice, every third is compared; where between its neighbours, this seed says."""
RIGID_STEPS, AFFINE_STEPS = 80, 100
LEAST_STEP_MM = 0.01
LEAST_GAIN = 0.02
"""A move that raises the information by less than this share is no move."""
LEAST_MM = 1.0
"""Nor is one that carries no corner of the view this far."""
BRAIN_HEIGHT_MM = 150.0
TURNS_DEG = 15.0
"""Where a first guess is turned by this about each axis, the best of them is climbed on."""

Move = Float[ndarray, "4 4"]

# Several threads add up in another order each time; and patients share out the cores already.
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """``move``: world of the moving head to world of the fixed one; ``information``: nats, more is better,
    and ``before`` without the move; ``farthest_mm``: how far it carries a corner of the view."""

    move: Move
    information: float
    before: float
    farthest_mm: float


def rigid(fixed: Volume, moving: Volume, *, ignore: Volume | None = None) -> Fit:
    """Turn and shift ``moving`` onto ``fixed``; the identity where that gains next to nothing.

    Args:
        ignore: where not to look on ``fixed``, such as its tumour.
    """
    onto, head = _pair(fixed, moving)
    found = _rigid(_Task(onto=onto, head=head, seen=_but(onto, ignore), heeded=None))
    if found.information <= found.before * (1 + LEAST_GAIN) or found.farthest_mm < LEAST_MM:
        return Fit(move=np.eye(4), information=found.before, before=found.before, farthest_mm=0.0)
    return found


def affine(atlas: Volume, head: Volume, *, within: Volume, without: Volume) -> tuple[Fit, Fit]:
    """The rigid move of a head onto the atlas, and that move stretched and sheared to fit best.

    Args:
        within: where to look on the atlas, such as its brain: a skull that it lacks does not count then.
        without: where not to look on the head, such as its tumour.
    """
    onto, seen = _pair(atlas, head)
    near = ndimage.binary_dilation(onto.sampled(within) > 0, iterations=2)
    task = _Task(
        onto=onto,
        head=seen,
        seen=_image(onto.holding(near)) > 0.5,
        heeded=_but(seen, without),
    )
    first = _rigid(task)
    centre = _middle_mm(onto)
    back = np.linalg.inv(first.move)
    start = sitk.AffineTransform(3)
    start.SetCenter(centre.tolist())
    start.SetMatrix(back[:3, :3].ravel().tolist())
    start.SetTranslation((back[:3, :3] @ centre + back[:3, 3] - centre).tolist())
    best = _fit(task, _climb(task, start, steps=AFFINE_STEPS), before=first.before)
    return first, best if best.information > first.information else first


def moved(volume: Volume, move: Move) -> Volume:
    """The same voxels, elsewhere."""
    return Volume(data=volume.data, affine_mm=np.asarray(move @ volume.affine_mm, dtype=np.float64))


def turned_deg(move: Move) -> float:
    """By how much a rigid move turns."""
    return float(np.degrees(np.arccos(np.clip((np.trace(move[:3, :3]) - 1) / 2, -1, 1))))


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Two heads, and where to look: ``seen`` on the fixed one, ``heeded`` on the other; None everywhere."""

    onto: Lattice
    head: Lattice
    seen: Any
    heeded: Any


def _pair(fixed: Volume, moving: Volume) -> tuple[Lattice, Lattice]:
    return on_lattice(fixed, pitch_mm=PITCH_MM), on_lattice(moving, pitch_mm=PITCH_MM)


def _rigid(task: _Task) -> Fit:
    still = sitk.Euler3DTransform()
    still.SetCenter(_middle_mm(task.onto).tolist())
    before = _information(task, still)
    begun = max(_first_guesses(task, still), key=lambda guess: _information(task, guess))
    return _fit(task, _climb(task, begun, steps=RIGID_STEPS), before=before)


def _fit(task: _Task, found: sitk.Transform, *, before: float) -> Fit:
    move = np.linalg.inv(_matrix(found))
    after = _information(task, found)
    return Fit(
        move=move, information=after, before=before, farthest_mm=_farthest_mm(move, task.head)
    )


def _image(lattice: Lattice) -> sitk.Image:
    """World millimetres are its physical ones: the axes of a lattice are those of the world."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(lattice.values.transpose(2, 1, 0)))
    image.SetOrigin([float(x) for x in lattice.origin_mm])
    image.SetSpacing([lattice.pitch_mm] * 3)
    return image


def _but(lattice: Lattice, ignore: Volume | None) -> Any:  # an image of SimpleITK, or None
    if ignore is None or not ignore.data.any():
        return None
    marked = ndimage.binary_dilation(lattice.sampled(ignore) > 0, iterations=2)
    return _image(lattice.holding(~marked)) > 0.5


def _method(task: _Task) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SHARE, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    if task.seen is not None:
        method.SetMetricFixedMask(task.seen)
    if task.heeded is not None:
        method.SetMetricMovingMask(task.heeded)
    return method


def _information(task: _Task, transform: sitk.Transform) -> float:
    method = _method(task)
    method.SetInitialTransform(transform)
    try:
        return -float(method.MetricEvaluate(_image(task.onto), _image(task.head)))
    except RuntimeError:  # the two do not overlap at all
        return 0.0


def _climb(task: _Task, start: sitk.Transform, *, steps: int) -> Any:  # a transform
    method = _method(task)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0,
        minStep=LEAST_STEP_MM,
        numberOfIterations=steps,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    try:
        return method.Execute(_image(task.onto), _image(task.head))
    except RuntimeError:  # walked off the image: the start is as good as anything
        return start


def _first_guesses(task: _Task, still: sitk.Euler3DTransform) -> Sequence[sitk.Euler3DTransform]:
    """As it lies; the middles of both heads laid on each other, straight and nodding."""
    shift = _middle_mm(task.head) - _middle_mm(task.onto)
    guesses = [still]
    for turn in (0.0, TURNS_DEG, -TURNS_DEG):
        guess = sitk.Euler3DTransform(still)
        guess.SetRotation(float(np.radians(turn)), 0.0, 0.0)
        guess.SetTranslation(shift.tolist())
        guesses.append(guess)
    return guesses


def _matrix(transform: sitk.Transform) -> Move:
    """The 4 x 4 matrix of a linear transform, from fixed world to moving world."""
    corner = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
    made = np.eye(4)
    made[:3, 3] = corner
    for axis in range(3):
        unit = np.zeros(3)
        unit[axis] = 100.0
        made[:3, axis] = (np.asarray(transform.TransformPoint(unit.tolist())) - corner) / 100.0
    return made


def _middle_mm(lattice: Lattice) -> Float[ndarray, " 3"]:
    """The centre of what is no air, from the top of the head as far down as a brain reaches."""
    cells = np.argwhere(foreground(lattice.values))
    if not len(cells):
        cells = np.argwhere(np.ones(lattice.values.shape, dtype=bool))
    top = np.quantile(cells[:, 2], 0.999)
    cells = cells[cells[:, 2] >= top - BRAIN_HEIGHT_MM / lattice.pitch_mm]
    middle: NDArray[np.float64] = cells.mean(axis=0)
    return np.asarray(lattice.origin_mm) + middle * lattice.pitch_mm


def _farthest_mm(move: Move, lattice: Lattice) -> float:
    """How far the move carries the outermost points of the view."""
    corner = np.asarray(lattice.origin_mm)
    size = (np.asarray(lattice.values.shape) - 1) * lattice.pitch_mm
    points = np.array([corner + size * [i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    there = points @ move[:3, :3].T + move[:3, 3]
    return float(np.linalg.norm(there - points, axis=1).max())
