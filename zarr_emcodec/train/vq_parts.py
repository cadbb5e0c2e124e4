"""The networks of a vector-quantised model as separate modules, each one file of the model directory.

Images are in standard deviations of the chunk, tokens are int64 grids ``(B, ...)``; several tokens of one cell stand
beside each other on its lattice. Distances are squared errors of a cell in those units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zarr_emcodec.train.arch.vae2d import GREY_OFFSET, GREY_SCALE
from zarr_emcodec.train.arch.vqvae import VQVAE, Quantiser, Refinement, TwoLevel


class Distances(nn.Module):
    """Vectors ``[B, C, ...]`` to squared distances of all codes on the token grid ``[B, K, ...]``."""

    order: Tensor

    def __init__(self, quantiser: Quantiser, lattice: tuple[int, ...]) -> None:
        super().__init__()
        self.lattice = lattice
        books = quantiser.codebook / GREY_SCALE
        groups, codes, _ = books.shape
        convolution = nn.Conv3d if len(lattice) == 3 else nn.Conv2d
        self.members = [torch.nonzero(mask).flatten() for mask in quantiser.group]
        self.books = nn.ModuleList()
        for g, own in enumerate(self.members):
            layer = convolution(len(own), codes, 1)
            book = books[g][:, own]
            layer.weight.data = (-2 * book).reshape(codes, len(own), *[1] * len(lattice))
            layer.bias = nn.Parameter(book.square().sum(1))
            self.books.append(layer)
        # channel k * G + g next to each other, as depth to space takes them
        self.register_buffer("order", torch.arange(groups * codes).reshape(groups, codes).T.flatten())
        self.spread: nn.ConvTranspose3d | None = None
        if len(lattice) == 3 and groups > 1:
            self.spread = nn.ConvTranspose3d(groups * codes, codes, lattice, lattice, groups=codes, bias=False)
            self.spread.weight.data = torch.eye(groups).reshape(groups, 1, *lattice).repeat(codes, 1, 1, 1, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors in grey levels."""
        vectors = vectors / GREY_SCALE
        if len(self.members) == 1:
            return _tensor(self.books[0](vectors))
        parts = [book(torch.index_select(vectors, 1, own)) for book, own in zip(self.books, self.members, strict=True)]
        side_by_side = torch.index_select(torch.cat(parts, 1), 1, self.order)
        return _tensor(self.spread(side_by_side)) if self.spread else F.pixel_shuffle(side_by_side, self.lattice[0])


class LookUp(nn.Module):
    """Tokens ``[B, ...]`` to vectors ``[B, C, ...]`` in grey levels."""

    back: Tensor

    def __init__(self, quantiser: Quantiser, lattice: tuple[int, ...]) -> None:
        super().__init__()
        self.lattice = lattice
        members = [torch.nonzero(mask).flatten() for mask in quantiser.group]
        self.books = nn.ParameterList(
            [nn.Parameter(book[:, own].clone()) for book, own in zip(quantiser.codebook, members, strict=True)]
        )
        self.register_buffer("back", torch.argsort(torch.cat(members)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Each group's tokens lie every `lattice` places apart."""
        ndim = len(self.lattice)
        order = (0, ndim + 1, *range(1, ndim + 1))
        if math.prod(self.lattice) == 1:
            return F.embedding(tokens, self.books[0]).permute(*order)
        parts = []
        for g, book in enumerate(self.books):
            places = tokens
            for axis, n in reversed(list(enumerate(self.lattice))):
                start = g // math.prod(self.lattice[axis + 1 :]) % n
                places = places[(slice(None), *[slice(None)] * axis, slice(start, None, n))]
            parts.append(F.embedding(places, book).permute(*order))
        return torch.index_select(torch.cat(parts, 1), 1, self.back)


class Encoder(nn.Module):
    """``image`` to ``distances`` of the top."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.analysis = model.analysis
        self.distances = Distances(model.quantiser, model.config.lattice)

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 1, ...]`` to ``[B, K, ...]``."""
        return _tensor(self.distances(self.analysis(image * GREY_SCALE + GREY_OFFSET)))


class Decoder(nn.Module):
    """``tokens`` to ``image``."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model
        self.look_up = LookUp(model.quantiser, model.config.lattice)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, 1, ...]``."""
        return (self.model.decode(self.look_up(tokens)) - GREY_OFFSET) / GREY_SCALE


class TopDecoder(nn.Module):
    """``top`` to ``image`` and ``features``, which the bottom's decoder needs."""

    def __init__(self, model: TwoLevel) -> None:
        super().__init__()
        self.model = model
        self.look_up = LookUp(model.top.quantiser, model.top.config.lattice)

    def forward(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, h, w]`` to ``[B, 1, H, W]`` and ``[B, F, 2h, 2w]``."""
        grey, features = self.model.decode_top(self.look_up(top))
        return (grey - GREY_OFFSET) / GREY_SCALE, features


class BottomEncoder(nn.Module):
    """``image`` and the top's ``decoded`` image to ``distances`` of the bottom."""

    def __init__(self, refinement: Refinement) -> None:
        super().__init__()
        self.analysis = refinement.analysis
        self.distances = Distances(refinement.quantiser, (1, 1))

    def forward(self, image: Tensor, decoded: Tensor) -> Tensor:
        """Both ``[B, 1, H, W]``, to ``[B, K, 2h, 2w]``."""
        return _tensor(self.distances(self.analysis((image - decoded) * GREY_SCALE + GREY_OFFSET)))


class BottomDecoder(nn.Module):
    """``bottom`` tokens and the top's ``features`` to the ``image`` to add to the top's."""

    def __init__(self, refinement: Refinement) -> None:
        super().__init__()
        self.refinement = refinement
        self.look_up = LookUp(refinement.quantiser, (1, 1))

    def forward(self, bottom: Tensor, features: Tensor) -> Tensor:
        """``[B, 2h, 2w]`` and ``[B, F, 2h, 2w]`` to ``[B, 1, H, W]``."""
        return self.refinement.decode(self.look_up(bottom), features) / GREY_SCALE


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
