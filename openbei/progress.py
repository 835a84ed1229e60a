"""Progress on stderr: texts and tokens a second with the time left by bytes of the file, or bytes a second.

Owns the wording of rates and the bar; never touches texts or vectors.
"""

import time
from typing import Any

PAUSE_S = 0.1  # before a bar is drawn, and then between two drawings


class Progress:
    """Counts what is done; draws a bar if asked to. total_bytes: None where the input has no known size."""

    def __init__(self, total_bytes: int | None, shown: bool) -> None:
        self._started_s = time.monotonic()
        self.num_texts = self._num_tokens = 0
        self._bar = _bar(total_bytes) if shown else None

    def add(self, done_bytes: int, num_tokens: int) -> None:
        """One more text is done: where its line ends in the file, and the tokens of all so far."""
        self.num_texts += 1
        self._num_tokens = num_tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(done_bytes - self._bar.n)

    def close(self) -> str:
        """Take the bar away; a sentence about the whole."""
        if self._bar is not None:
            self._bar.close()
        return f"{self.num_texts} texts in {self._elapsed_s():.1f} s ({self._rates()})"

    def _rates(self) -> str:
        seconds = self._elapsed_s()
        return f"{self.num_texts / seconds:,.0f} texts/s, {self._num_tokens / seconds:,.0f} tokens/s"

    def _elapsed_s(self) -> float:
        return max(time.monotonic() - self._started_s, 1e-9)


class ByteProgress:
    """Sentences about the steps of a long job and, if asked to, a count of bytes with their rate."""

    def __init__(self, shown: bool) -> None:
        form = "{n_fmt}B{postfix} {rate_fmt}"
        self._bar = _tqdm(None, form, unit="B", unit_scale=True) if shown else None

    def add(self, num_bytes: int) -> None:
        """So many more bytes are done."""
        if self._bar is not None:
            self._bar.update(num_bytes)

    def close(self) -> None:
        """Take the count away."""
        if self._bar is not None:
            self._bar.close()


def _bar(total_bytes: int | None) -> Any:
    known = "{percentage:3.0f}%|{bar:30}|{postfix}, {remaining} left"
    unknown = "{elapsed}{postfix}"
    form = unknown if total_bytes is None else known
    return _tqdm(total_bytes, form)


def _tqdm(total: int | None, form: str, **more: Any) -> Any:
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no watching thread: the bar moves with every text
    return tqdm(total=total, bar_format=form, leave=False, delay=PAUSE_S, mininterval=PAUSE_S, **more)
