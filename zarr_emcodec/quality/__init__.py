"""What a reconstruction is worth, and which setting reaches what was asked for. Arrays and numbers only."""

from __future__ import annotations

from zarr_emcodec.quality.measure import peak_of, psnr, ssim, worst_error

__all__ = ["peak_of", "psnr", "ssim", "worst_error"]
