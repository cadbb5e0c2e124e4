"""Pay as you decode: which chunks of a stored array decode at which tier.

An array and a region of it in; the same array with other tiers (`upgrade_roi`, `downgrade_roi`), voxels at a tier of
the reader's choice (`read_roi`), places worth restoring (`propose_roi`), or a picture out. `write_roi` alone encodes.
"""

from __future__ import annotations

from zarr_emcodec.roi.field import INRField
from zarr_emcodec.roi.propose import Proposal, propose_roi
from zarr_emcodec.roi.read import read_roi
from zarr_emcodec.roi.show import TierMap, draw_tiers, tier_map
from zarr_emcodec.roi.upgrade import RoiReport, downgrade_roi, upgrade_roi
from zarr_emcodec.roi.write import WriteReport, write_roi

__all__ = [
    "INRField",
    "Proposal",
    "RoiReport",
    "TierMap",
    "WriteReport",
    "downgrade_roi",
    "draw_tiers",
    "propose_roi",
    "read_roi",
    "tier_map",
    "upgrade_roi",
    "write_roi",
]
