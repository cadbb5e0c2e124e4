"""The lowest price on bits at which a frame of tokens fits its room: one search for each frame.

How full frames are in, prices to try out. Knows neither tokens nor models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TRIES = 12
_NARROW = 0.002  # of the price: hardly a token changes between two that lie so near
_RISE = 2.0
_OFF_ENDS = 0.05  # of the bracket: nearer to its ends a try would tell little


@dataclass
class PriceSearch:
    """False position between a price that is too low and one at which the frame fits.

    Parameters
    ----------
    price : float
        At which the frame is too large.
    fill : float
        Its bytes at that price over those that it may have; above 1.
    guess : float
        A higher price to try first.
    ceiling : float
        The highest worth trying: beyond it nothing is left to squeeze out.
    close : float
        Share of its room that a frame may leave.

    Attributes
    ----------
    price : float or None
        To try next; None when the search is over.

    Notes
    -----
    The Illinois variant (Dowell and Jarratt 1971): an end that stays twice counts half, so that both ends move. Sizes
    need not fall with the price everywhere, since a token changes the tables of others; the search still ends, and
    keeps the fullest frame that fits.

    Examples
    --------
    >>> search = PriceSearch(0.0, 1.1, guess=1.0, ceiling=4.0, close=0.01)
    >>> while search.price is not None:
    ...     tried, better = search.price, search.tell(1.1 - 0.08 * search.price)
    >>> better, round(tried, 2)
    (True, 1.31)
    """

    price: float | None
    fill: float
    guess: float
    ceiling: float
    close: float
    _low: tuple[float, float] = field(init=False)
    _high: tuple[float, float] | None = field(init=False, default=None)
    _tries: int = field(init=False, default=0)
    _best: float = field(init=False, default=0.0)
    _fitted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        assert self.price is not None
        self._low = self.price, self._excess(self.fill)
        self.price = min(max(self.guess, self.price), self.ceiling)

    def tell(self, fill: float) -> bool:
        """Note how full the frame is at the price that was tried; whether it is the one to keep so far."""
        assert self.price is not None
        fits = fill <= 1
        better = fill > self._best if fits else not self._best  # none fits: at the highest price tried
        self._best = max(self._best, fill) if fits else self._best
        self._narrow(self.price, fill, again=fits is self._fitted and self._tries > 0)
        self._fitted = fits
        self._tries += 1
        over = self._tries == TRIES or (fits and fill >= 1 - self.close)
        self.price = None if over else self._next(self.price)
        return better

    def _excess(self, fill: float) -> float:
        """Above the middle of what is close enough."""
        return fill - (1 - self.close / 2)

    def _narrow(self, price: float, fill: float, *, again: bool) -> None:
        """Move one end of the bracket; the other counts half where it stays `again`."""
        half = 0.5 if again else 1.0
        if fill <= 1:
            self._high = price, self._excess(fill)
            self._low = self._low[0], self._low[1] * half
        else:
            self._low = price, self._excess(fill)
            self._high = (self._high[0], self._high[1] * half) if self._high else None

    def _next(self, tried: float) -> float | None:
        if self._high is None:
            return min(_RISE * tried, self.ceiling) if tried < self.ceiling else None
        (low, over), (high, under) = self._low, self._high
        if high - low <= _NARROW * high:
            return None
        return low + min(max(over / (over - under), _OFF_ENDS), 1 - _OFF_ENDS) * (high - low)
