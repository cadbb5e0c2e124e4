"""Membrane maps to objects, and how far two segmentations of the same sections lie apart.

Logits of a segmentation network or labelled membranes in, objects out; a candidate and a truth in, variation of
information and the adapted Rand error out. Knows no codec and no network. Objects are those of single sections: what
is split or merged from section to section is not seen here. Synapses are not scored: that needs labelled synapses, and
none of the public volumes that the benchmarks name has any.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label, watershed_ift

Labels: TypeAlias = NDArray[np.int64]

# Of 0.02 to 0.4 and of 1 to 8 voxels those of least VI on an uncompressed section that is not scored (9 of the VNC)
SEED_THRESHOLD = 0.05  # far below that of least pixel error: a gap in a membrane joins two objects
SEED_DISTANCE = 1  # voxels
SMALLEST = 100  # voxels of a truth's object; smaller ones are specks between two lines of a drawn membrane


def true_objects(membranes: NDArray[np.bool_]) -> Labels:
    """Objects of drawn membranes: connected voxels (4 neighbours) of a section between them.

    Parameters
    ----------
    membranes : ndarray, shape (z, y, x), bool

    Returns
    -------
    ndarray, shape (z, y, x), int64
        0 on membranes and on objects of fewer than `SMALLEST` voxels; no number is in two sections.
    """
    sections = []
    for section in membranes:
        found, _ = label(~section)
        small = np.bincount(found.ravel()) < SMALLEST
        sections.append(np.where(small[found], 0, found))
    return _apart(sections)


def objects(logits: NDArray[np.floating[Any]]) -> Labels:
    """Objects of predicted membranes: a watershed of the probability from seeds deep inside.

    Parameters
    ----------
    logits : ndarray, shape (z, y, x), float
        Of a voxel's being membrane.

    Returns
    -------
    ndarray, shape (z, y, x), int64
        Every voxel belongs to an object; no number is in two sections.

    Notes
    -----
    Seeds are the connected voxels farther than `SEED_DISTANCE` from any whose probability is above `SEED_THRESHOLD`:
    one rule for every map, nothing is drawn at random. The flood is the image foresting transform (Lotufo and Falcao
    2000) over the probability in 256 steps.
    """
    sections = []
    for section in logits:
        probability = 1 / (1 + np.exp(-section.astype(np.float64)))
        membrane = probability > SEED_THRESHOLD
        # without any membrane there is no distance to one
        depth = distance_transform_edt(~membrane) if membrane.any() else np.full(section.shape, np.inf)
        seeds, n_seeds = label(depth > SEED_DISTANCE)
        if n_seeds < 2:
            sections.append(np.ones(section.shape, np.int64))
            continue
        sections.append(watershed_ift(np.rint(probability * 255).astype(np.uint8), seeds.astype(np.int32)))
    return _apart(sections)


def _apart(sections: list[NDArray[Any]]) -> Labels:
    """The sections as one array, numbers counted on from section to section; 0 stays 0."""
    first, numbered = 0, []
    for section in sections:
        numbered.append(np.where(section > 0, section.astype(np.int64) + first, 0))
        first += int(section.max())
    return np.stack(numbered)


def segmentation_error(candidate: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """How far a segmentation lies from the truth, over the voxels where the truth has an object.

    Parameters
    ----------
    candidate, truth : ndarray of integers, same shape
        Objects; 0 in `truth` is background and left out. Sections must not share numbers.

    Returns
    -------
    dict
        ``vi_split`` H(candidate | truth) and ``vi_merge`` H(truth | candidate), in bits: what of the true objects is
        cut, and what of them is joined (Meila 2007). ``arand`` 1 - F of pairs of voxels, the adapted Rand error
        (Arganda-Carreras et al. 2015, eq. 3 and 4, with equal weight on precision and recall). 0 is equal for all.

    Examples
    --------
    Two equal halves joined cost a bit of merging; one of them cut in the middle half a bit of splitting.

    >>> halves = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    >>> segmentation_error(np.ones_like(halves), halves)["vi_merge"]
    1.0
    >>> segmentation_error(np.array([[1, 1, 1, 1, 2, 2, 3, 3]]), halves)["vi_split"]
    0.5
    """
    inside = truth > 0
    _, found = np.unique(candidate[inside], return_inverse=True)
    _, true = np.unique(truth[inside], return_inverse=True)
    n_true = int(true.max()) + 1
    pairs, counts = np.unique(found.astype(np.int64) * n_true + true, return_counts=True)
    joint = counts / counts.sum()
    of_found, of_true = np.bincount(pairs // n_true, joint), np.bincount(pairs % n_true, joint)
    squares = float(np.sum(of_found**2) + np.sum(of_true**2))
    return {
        "vi_split": max(_entropy(joint) - _entropy(of_true), 0.0),  # rounding may leave it under 0
        "vi_merge": max(_entropy(joint) - _entropy(of_found), 0.0),
        "arand": 1 - 2 * float(np.sum(joint**2)) / squares,
    }


def _entropy(shares: NDArray[np.float64]) -> float:
    """In bits, of shares above 0."""
    return float(-(shares * np.log2(shares)).sum())
