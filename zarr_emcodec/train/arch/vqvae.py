"""Vector-quantised autoencoders: a convolutional encoder, a codebook learnt by moving averages, a decoder.

One level: grey levels to one token of K per cell, and back (van den Oord et al. 2017, appendix A.1 for the moving
averages). Two levels: a second, finer grid of tokens codes what the first leaves over; its decoder takes the features
of the upsampled top by FiLM and concatenation. Encoders and decoders are those of the variational models, in 2-D or
3-D, so that training starts from a block KLT or from their trained weights: with orthonormal transforms the nearest
code vector is the one of least squared error in grey levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.train.arch.vae2d import GREY_OFFSET, PATCH, Analysis, ArchConfig, Residual, Synthesis, _zero
from zarr_emcodec.train.arch.vae3d import Analysis3d, Arch3dConfig, Synthesis3d


@dataclass(frozen=True)
class VQConfig:
    """Everything that fixes a vector-quantised network's shape.

    Attributes
    ----------
    arch : ArchConfig or Arch3dConfig
        Encoder and decoder; its channels are those of the code vectors of one cell together.
    lattice : tuple of int
        Tokens per cell along each axis. A cell with several codes its channels in as many groups, a token for each
        (product quantisation, Jegou et al. 2011): a large block and few bits a token, where a small block for each
        token would code the same slow variations again and again.
    codes : int
        Size K of the codebook.
    """

    arch: ArchConfig | Arch3dConfig = field(default_factory=ArchConfig)
    lattice: tuple[int, ...] = (1, 1)
    codes: int = 256

    @property
    def ndim(self) -> int:
        """2 for sections, 3 for volumes."""
        return 3 if isinstance(self.arch, Arch3dConfig) else 2

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels per token along each axis."""
        return tuple(s // n for s, n in zip(self.cell, self.lattice, strict=True))

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels per cell of the networks along each axis."""
        return self.arch.stride if isinstance(self.arch, Arch3dConfig) else (self.arch.stride,) * 2

    @property
    def groups(self) -> int:
        """Tokens per cell."""
        return math.prod(self.lattice)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a card."""
        return {"ndim": self.ndim, "arch": self.arch.to_dict(), "lattice": self.lattice, "codes": self.codes}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VQConfig:
        """Inverse of `to_dict`."""
        arch = (Arch3dConfig if data["ndim"] == 3 else ArchConfig).from_dict(data["arch"])
        return cls(arch=arch, lattice=tuple(data["lattice"]), codes=data["codes"])


class Quantiser(nn.Module):
    """G codebooks of K vectors that follow their members by exponential moving averages.

    Each codebook is zero outside its own group of channels, so codes of the groups add up to a latent vector, and
    squared distances of the groups to a squared distance.

    Attributes
    ----------
    group : Tensor, shape (G, C)
        1 where a channel belongs to a group, else 0.
    codebook : Tensor, shape (G, K, C)
        Code vectors, in grey levels of the transform.
    count, total : Tensor, shape (G, K), (G, K, C)
        Moving averages of how often a code is chosen, and of the sum of the vectors that chose it.
    """

    group: Tensor
    codebook: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, codes: int, channels: int, groups: int = 1, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("group", torch.ones(groups, channels))
        self.register_buffer("codebook", torch.zeros(groups, codes, channels))
        self.register_buffer("count", torch.ones(groups, codes))
        self.register_buffer("total", torch.zeros(groups, codes, channels))

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distance to each code within its group, less the vectors' own square.

        Parameters
        ----------
        vectors : Tensor, shape (B, C, ...)

        Returns
        -------
        Tensor, shape (B, G, K, ...)
        """
        groups, codes, channels = self.codebook.shape
        weight = (-2 * self.codebook).reshape(groups * codes, channels, *[1] * (vectors.ndim - 2))
        convolve = F.conv3d if vectors.ndim == 5 else F.conv2d
        flat = convolve(vectors, weight, self.codebook.square().sum(2).flatten())
        return flat.reshape(len(flat), groups, codes, *flat.shape[2:])

    def choose(self, vectors: Tensor) -> Tensor:
        """Nearest codes ``(B, G, ...)`` of vectors ``(B, C, ...)``."""
        return self.distances(vectors).argmin(2)

    def look_up(self, tokens: Tensor) -> Tensor:
        """Latent vectors ``(B, C, ...)`` of tokens ``(B, G, ...)``."""
        parts = [F.embedding(tokens[:, g], book).movedim(-1, 1) for g, book in enumerate(self.codebook)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    @torch.no_grad()
    def follow(self, vectors: Tensor, tokens: Tensor) -> None:
        """Move the codebooks towards the vectors ``(N, C)`` whose groups chose the tokens ``(N, G)``."""
        for g, mask in enumerate(self.group):
            chosen = F.one_hot(tokens[:, g], self.codebook.shape[1]).to(vectors.dtype)  # (N, K)
            self.count[g].lerp_(chosen.sum(0), 1 - self.decay)
            self.total[g].lerp_(chosen.T @ (vectors * mask), 1 - self.decay)
        # Laplace smoothing, so that a code that nobody chose for a while does not blow up
        whole = self.count.sum(1, keepdim=True)
        smooth = (self.count + 1e-5) / (whole + self.count.shape[1] * 1e-5) * whole
        self.codebook.copy_(self.total / smooth[:, :, None])

    @torch.no_grad()
    def restart(self, vectors: Tensor, *, share: float = 0.05) -> int:
        """Seed codes chosen less than `share` of the mean anew from random vectors ``(N, C)``; how many they were."""
        revived = 0
        for g, mask in enumerate(self.group):
            mean = float(self.count[g].mean())
            dead = torch.nonzero(self.count[g] < share * mean).flatten()
            if len(dead):
                drawn = vectors[torch.randint(len(vectors), (len(dead),), device=vectors.device)] * mask
                self.codebook[g, dead] = drawn
                self.count[g, dead] = 0.5 * mean  # long enough alive to find its members
                self.total[g, dead] = drawn * 0.5 * mean
            revived += len(dead)
        return revived

    @torch.no_grad()
    def seed(self, vectors: Tensor, *, rounds: int = 20, random: int = 0) -> None:
        """Share out the channels, then Lloyd's algorithm on vectors ``(N, C)``, from random members."""
        generator = torch.Generator().manual_seed(random)
        codes = self.codebook.shape[1]
        self.group.copy_(share_channels(vectors.std(0), len(self.group), math.log2(codes)))
        for g, mask in enumerate(self.group):
            own = vectors * mask
            book = own[torch.randperm(len(own), generator=generator)[:codes]].clone()
            for _ in range(rounds):
                tokens = (book.square().sum(1)[None] - 2 * own @ book.T).argmin(1)
                count = torch.bincount(tokens, minlength=codes).float()
                total = torch.zeros_like(book).index_add_(0, tokens, own)
                empty = count == 0
                total[empty] = own[torch.randint(len(own), (int(empty.sum()),), generator=generator)]
                count[empty] = 1.0
                book = total / count[:, None]
            self.codebook[g] = book
            self.count[g] = count / count.mean()
            self.total[g] = book * self.count[g][:, None]


def share_channels(deviations: Tensor, groups: int, bits: float) -> Tensor:
    """Which group codes which channel, so that each has about the same to say.

    Channels are taken by falling variance; each weighs what reverse water-filling gives it at the total rate.

    Parameters
    ----------
    deviations : Tensor, shape (C,)
        Standard deviations of the latents.
    groups : int
    bits : float
        Per group.

    Returns
    -------
    Tensor, shape (groups, C)
        0 or 1; each channel in one group.
    """
    low, high = 1e-4, float(deviations.max()) + 1.0
    for _ in range(60):  # water level by bisection on a log scale
        level = math.sqrt(low * high)
        rate = torch.log2(deviations / level).clamp(min=0)
        low, high = (level, high) if float(rate.sum()) > groups * bits else (low, level)
    order = torch.argsort(deviations, descending=True)
    filled = torch.cumsum(rate[order], 0) - rate[order] / 2  # the middle of a channel decides
    which = (filled / (float(rate.sum()) / groups)).long().clamp(max=groups - 1)
    group = torch.zeros(groups, len(deviations))
    group[which, order] = 1.0
    return group


class VQVAE(nn.Module):
    """One level: analysis, codebook, synthesis.

    Attributes
    ----------
    spread : Tensor, shape (C,)
        Standard deviation of each latent channel at the start; the decoder's convolutional path sees latents over it.
    """

    spread: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.analysis: nn.Module
        self.synthesis: Synthesis | Synthesis3d
        if isinstance(config.arch, Arch3dConfig):
            self.analysis, self.synthesis = Analysis3d(config.arch), Synthesis3d(config.arch)
        else:
            self.analysis, self.synthesis = Analysis(config.arch), Synthesis(config.arch)
        self.quantiser = Quantiser(config.codes, config.arch.channels, config.groups)
        self.register_buffer("spread", torch.ones(config.arch.channels))

    def vectors(self, grey: Tensor) -> Tensor:
        """Grey levels ``[B, 1, ...]`` to latent vectors ``[B, C, ...]``."""
        out: Tensor = self.analysis(grey).float()
        return out

    def decode(self, vectors: Tensor) -> Tensor:
        """Latent vectors ``[B, C, ...]`` to grey levels ``[B, 1, ...]``."""
        squashed = vectors / self.spread.reshape(1, -1, *[1] * (vectors.ndim - 2))
        film = self.synthesis.film.bias[None]  # one rate, so the shift and scale of the first stage are constants
        return self.synthesis.synthesise(vectors, squashed, film)

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decoded grey levels, vectors, tokens, and the code vectors; gradients pass straight through the choice."""
        vectors = self.vectors(grey)
        tokens = self.quantiser.choose(vectors.detach())
        codes = self.quantiser.look_up(tokens)
        return self.decode(vectors + (codes - vectors).detach()), vectors, tokens, codes


class Refinement(nn.Module):
    """The second level: tokens of what the top leaves over, and a decoder that knows the top.

    Parameters
    ----------
    arch : ArchConfig
        Its stride is that of the bottom tokens, half of the top's.
    top_width : int
        Channels of the top decoder's features at the bottom's stride.

    Notes
    -----
    The bottom latents are modulated by FiLM from the top's features and concatenated with them (Perez et al. 2018;
    arXiv 2511.00231). The result is added to the top's decoded grey levels, so bottom tokens of zero leave the top.
    """

    spread: Tensor

    def __init__(self, arch: ArchConfig, top_width: int, codes: int = 256) -> None:
        super().__init__()
        self.arch = arch
        self.analysis = Analysis(arch)
        self.quantiser = Quantiser(codes, arch.channels)
        self.register_buffer("spread", torch.ones(arch.channels))
        wide, fine = arch.dec_widths[-1], arch.dec_widths[0]
        self.linear = nn.Conv2d(arch.channels, arch.stride**2, 1, bias=False)
        self.inner = nn.Conv2d(arch.channels, wide, 1)
        self.scale, self.shift = nn.Conv2d(top_width, wide, 1), nn.Conv2d(top_width, wide, 1)
        self.join = nn.Conv2d(wide + top_width, wide, 1)
        self.coarse = nn.Sequential(*(Residual(wide) for _ in range(arch.dec_blocks[-1])))
        self.open = nn.Conv2d(wide // 4 + PATCH**2, fine, 1)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(arch.dec_blocks[0])))
        self.head = nn.Conv2d(fine, PATCH**2, 1)
        _zero(self.scale.weight, self.scale.bias, self.shift.weight, self.shift.bias)
        _zero(self.head.weight, self.head.bias)

    def vectors(self, grey: Tensor, top: Tensor) -> Tensor:
        """Vectors ``[B, D, 2h, 2w]`` of what the decoded top leaves of the grey levels, both ``[B, 1, H, W]``."""
        out: Tensor = self.analysis(grey - top + GREY_OFFSET).float()
        return out

    def decode(self, vectors: Tensor, features: Tensor) -> Tensor:
        """Grey levels to add to the top's, from bottom vectors and the top's features at the same grid."""
        patches = F.pixel_shuffle(self.linear(vectors / 32.0), self.arch.stride // PATCH)  # (B, 64, H/8, W/8)
        u = F.leaky_relu(self.inner(vectors / self.spread[None, :, None, None]), 0.1)
        u = u * (1 + self.scale(features)) + self.shift(features)
        h = self.coarse(F.leaky_relu(self.join(torch.cat([u, features], 1)), 0.1))
        h = F.leaky_relu(self.open(torch.cat([F.pixel_shuffle(h, 2), patches], 1)), 0.1)
        h = self.fine(h)
        return F.pixel_shuffle((patches + self.head(h)).float(), PATCH) * 32.0


class TwoLevel(nn.Module):
    """A one-level 2-D model whose tokens are the top, and a `Refinement` of half its stride."""

    def __init__(self, top: VQVAE, arch: ArchConfig) -> None:
        super().__init__()
        self.top = top
        assert isinstance(top.config.arch, ArchConfig)
        self.bottom = Refinement(arch, top.config.arch.dec_widths[-2], top.config.codes)

    def decode_top(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Grey levels of the top alone, and its decoder's features at the bottom's grid."""
        synthesis = self.top.synthesis
        features: list[Tensor] = []
        last = list(synthesis.stages[1].children())[-1]  # a residual block: all of the stage has been
        hook = last.register_forward_hook(lambda _m, _i, out: features.append(out))
        try:
            grey = self.top.decode(vectors)
        finally:
            hook.remove()
        return grey, features[0]

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Grey levels from vectors of both grids."""
        grey, features = self.decode_top(top)
        return grey + self.bottom.decode(bottom, features)


def perplexity(tokens: Tensor, codes: int) -> float:
    """``2 ** H`` of the tokens' histogram, mean over the groups (axis 1): how many codes are in use."""
    entropies = []
    for group in tokens.unbind(1):
        share = torch.bincount(group.flatten(), minlength=codes).double()
        share = share[share > 0] / share.sum()
        entropies.append(-(share * share.log()).sum())
    return math.exp(float(torch.stack(entropies).mean()))
