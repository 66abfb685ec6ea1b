"""The token model: writes the token grid of a video token by token, its cache sliding along (docs/spec.md 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arlon_rt.backends import Handle, Looping, Session
from arlon_rt.config import ARConfig
from arlon_rt.errors import BackendError, OptionsError
from arlon_rt.networks import noise
from arlon_rt.networks.embedding import Text, guidance_weights, stacked
from arlon_rt.networks.tokens import TokenState

AT_ONCE = 32
"""How many tokens a `Looping` session writes before the host reads them."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the token model is guided and its logits sampled; `GenerateOptions.resolved` checks the numbers."""

    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float
    seed: int


def grid_positions(
    start: int, count: int, height: int, width: int, position_of: Literal["self", "next"]
) -> NDArray[np.int64]:
    """Grid positions (count, 3) as (code_frame, row, column) of a window's sequence from index ``start``.

    The sequence is BOS, code 0, code 1, …, codes row-major in a code-frame of (height, width). With ``"next"`` entry j
    carries the position of code j, the one it predicts; with ``"self"`` that of code j-1, its own, and BOS that of
    code 0.
    """
    codes = np.arange(start, start + count, dtype=np.int64)
    if position_of == "self":
        codes = np.maximum(codes - 1, 0)
    frame, place = np.divmod(codes, height * width)
    return np.stack([frame, *np.divmod(place, width)], axis=1)


class TokenModel:
    """The opened graphs ``ar_prefix`` and ``ar_step``."""

    def __init__(self, prefix: Session, step: Session, config: ARConfig) -> None:
        self.prefix, self.step, self.config = prefix, step, config

    def check_size(self, height: int, width: int) -> None:
        """Raise `OptionsError` for a code-frame larger than the position tables, which the model was trained with."""
        _, rows, columns = self.config.grid
        if height > rows or width > columns:
            raise OptionsError(
                f"height and width need {height} x {width} codes a code-frame; this bundle's token model knows at most "
                f"{rows} x {columns}; ask for a smaller video, or set inject to False"
            )

    def check_state(self, state: TokenState | None, height: int, width: int, code_frames: int) -> None:
        """Raise `OptionsError` unless a state fits ``code_frames`` code-frames, the last one perhaps not written."""
        if state is None:
            raise OptionsError("there are no tokens to go on from")
        area, after = height * width, state.dropped + len(state.codes)
        written = after // area
        fits = (
            after % area == 0 and code_frames - 1 <= written <= code_frames
            and 0 <= state.dropped <= state.window <= after and after - state.window <= self.config.grid[0] * area
            and 0 <= state.context <= after - state.window
            and (state.fed == 0 or 1 + state.context <= state.fed <= 1 + after - state.window)
        )
        if not fits or not all(0 <= code < self.config.num_codes for code in state.codes):
            raise OptionsError(
                f"{len(state.codes)} tokens from {state.dropped} on, {state.fed} of them fed in a window at "
                f"{state.window}, are no state of a stream of {code_frames} code-frames"
            )


class TokenStream:
    """The token grid of one video, which grows.

    A window is the text, BOS and the codes of up to ``capacity`` code-frames, in consecutive cache slots from 0 (each
    row of a batch from the end of its own text). When it is full, or the prompt changes, the newest code-frames, half
    a window, are fed again in one call as the start of the next. Token i is drawn with the number keyed by (seed, i),
    so the tokens do not depend on where segments are cut. Memory does not grow: codes that neither the next window
    nor the next segment can need are dropped.
    """

    def __init__(
        self, model: TokenModel, height: int, width: int, sampling: Sampling, known: Iterable[tuple[int, int]] = ()
    ) -> None:
        """An empty grid with code-frames of ``height`` x ``width``; see `TokenModel.check_size`.

        ``known`` holds (index in the video, code) for each token that the model is not to write.
        """
        self._model, self._sampling = model, sampling
        self._height, self._width, self._area = height, width, height * width
        self._codes: list[int] = []
        self._dropped = 0  # codes before self._codes[0]
        self._texts: tuple[Text, ...] = ()
        self._lengths = np.zeros(0, np.int64)  # of each row's text: the slot of BOS
        self._capacity = model.config.grid[0]  # code-frames; the caches also have room for the longest prompt
        self._window = 0  # index of the window's first code
        self._context = 0  # codes fed together when the window was opened
        self._fed = 0  # entries of the window's sequence that are in the cache
        self._caches: dict[str, NDArray[Any] | Handle] = {}
        self._known = dict(known)

    def extend(
        self, texts: Sequence[Text], code_frames: range,
        on_token: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.int64]:
        """Write tokens up to the end of ``code_frames`` and return those (1, code_frame, height, width).

        ``texts`` is the prompt, and after it the null prompt when ``guidance_scale`` is not 1. Ranges of successive
        calls may overlap but never go back. ``on_token`` is called with (done, total) after each token.
        """
        if self._texts != tuple(texts):
            self._prefill_text(tuple(texts))
        before, stop = self._written, code_frames.stop * self._area
        while self._written < stop:
            if self._written - self._window == self._capacity * self._area:
                self._open_window()
            for code in self._next(stop):
                self._codes.append(code)
                on_token(self._written - before, stop - before)
        first = code_frames.start * self._area - self._dropped
        tokens = np.array(self._codes[first : stop - self._dropped], np.int64)
        spare = min(code_frames.start * self._area, self._written - self._capacity * self._area) - self._dropped
        if spare > 0:
            del self._codes[:spare]
            self._dropped += spare
        return tokens.reshape(1, len(code_frames), self._height, self._width)

    def state(self) -> TokenState:
        """The state for `restore`, which also needs the texts of the last `extend`."""
        return TokenState(
            codes=tuple(self._codes), dropped=self._dropped, window=self._window, context=self._context, fed=self._fed
        )

    def restore(self, state: TokenState, texts: Sequence[Text]) -> None:
        """Go on from the ``state`` of another stream, whose last `extend` had these ``texts``.

        The caches are filled by the same calls as in that stream, so that what follows is the same to the last bit.
        """
        self._codes, self._dropped = list(state.codes), state.dropped
        self._prefill_text(tuple(texts))
        self._window, self._context = state.window, state.context
        first = self._window - self._dropped
        while self._fed < state.fed:
            sampled = self._window + (self._fed or self._context)
            while sampled in self._known:
                sampled += 1
            self._feed(self._codes[first + max(self._fed - 1, 0) : sampled - self._dropped])

    @property
    def _written(self) -> int:
        return self._dropped + len(self._codes)

    def _prefill_text(self, texts: tuple[Text, ...]) -> None:
        """Fill the caches with the text of every row and start a window there."""
        config = self._model.config
        hidden, mask = stacked(texts)
        self._texts, self._lengths = texts, mask.sum(axis=1)
        shape = (len(texts), config.num_heads, config.max_length, config.head_dim)
        caches = self._caches or {
            f"{kind}_{layer}": np.zeros(shape, self._model.step.float_dtype)
            for layer in range(config.num_layers) for kind in ("key", "value")
        }
        self._run(self._model.prefix, {"last_hidden_state": hidden}, caches)
        self._open_window()

    def _open_window(self) -> None:
        """Start a window at the newest half window of whole code-frames; the text stays in the first slots."""
        self._context = min(self._written // self._area, self._capacity // 2) * self._area
        self._window = self._written - self._context
        self._fed = 0

    def _next(self, stop: int) -> list[int]:
        """The next codes of one call; they end before index ``stop``, the window's end or a known code."""
        if self._written in self._known:
            return [self._known[self._written]]
        unseen = self._codes[self._window + max(self._fed - 1, 0) - self._dropped :]
        if not isinstance(self._model.step, Looping) or not self._fed or len(unseen) > 1:
            return [self._feed(unseen)]
        end = min(stop, self._window + self._capacity * self._area, self._written + AT_ONCE)
        count = next((n for n in range(end - self._written) if self._written + n in self._known), end - self._written)
        return self._loop(self._model.step, unseen[0], count)

    def _loop(self, step: Looping, token: int, count: int) -> list[int]:
        """Feed a token, and each one sampled after it, until ``count`` are sampled."""
        fed = np.arange(self._fed, self._fed + count)
        grid = grid_positions(self._fed, count, self._height, self._width, self._model.config.position_of)
        each = {
            "grid": grid[:, None],
            "write_index": self._lengths + fed[:, None],
            "uniform": np.array([[self._uniform(self._written + n)] for n in range(count)], np.float32),
        }
        feed = {**self._sampling_feed(), "tokens": np.array([[token]], np.int64), **self._caches}
        outputs = step.loop(feed, each, {"tokens": "next_token"}, hold=[f"{name}_out" for name in self._caches])
        self._caches = {name: outputs[f"{name}_out"] for name in self._caches}
        self._fed += count
        return [self._checked(int(code)) for code in np.asarray(outputs["next_token"]).flatten()]

    def _feed(self, codes: list[int]) -> int:
        """Feed the next codes of the window, after BOS where it is new, and sample the one that follows them."""
        config = self._model.config
        tokens = codes if self._fed else [config.bos, *codes]
        feed: dict[str, NDArray[Any]] = {
            "tokens": np.array([tokens], np.int64),
            "grid": grid_positions(self._fed, len(tokens), self._height, self._width, config.position_of),
            "write_index": self._lengths + self._fed,
            "uniform": np.array([self._uniform(self._written)], np.float32),
            **self._sampling_feed(),
        }
        token = int(self._run(self._model.step, feed, self._caches)["next_token"][0, 0])
        self._fed += len(tokens)
        return self._checked(token)

    def _sampling_feed(self) -> dict[str, NDArray[Any]]:
        """The inputs that are the same at every step."""
        sampling = self._sampling
        return {
            "guidance_weights": guidance_weights(sampling.guidance_scale, len(self._texts)),
            "temperature": np.array([sampling.temperature], np.float32),
            # a temperature of 0 divides by almost nothing in the graph, which is not strictly greedy
            "top_k": np.array([sampling.top_k if sampling.temperature > 0 else 1], np.int64),
            "top_p": np.array([sampling.top_p], np.float32),
        }

    def _uniform(self, code: int) -> float:
        """The random number that draws this code of the video."""
        return noise.uniform(self._sampling.seed, "token", code)

    def _checked(self, token: int) -> int:
        if not 0 <= token < self._model.config.num_codes:
            last = self._model.config.num_codes - 1
            raise BackendError(f"ar_step sampled token {token}, which is no code (0 .. {last})")
        return token

    def _run(
        self, session: Session, feed: dict[str, NDArray[Any]], caches: dict[str, NDArray[Any] | Handle]
    ) -> dict[str, Any]:
        outputs = session.run({**feed, **caches}, hold=[f"{name}_out" for name in caches])
        self._caches = {name: outputs[f"{name}_out"] for name in caches}
        return outputs
