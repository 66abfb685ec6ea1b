"""The text encoder: a prompt is cleaned, cut into T5's tokens and encoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from arlon_rt.backends import Session
from arlon_rt.config import TextConfig
from arlon_rt.errors import BundleError, OptionsError
from arlon_rt.events import PromptCut
from arlon_rt.networks.captions import clean_caption
from arlon_rt.networks.embedding import Text

PAD, EOS, UNKNOWN = 0, 1, 2
CACHED_PROMPTS = 8


class Tokenizer:
    """A sentencepiece model, used as T5 uses it: special tokens are read in the text, and ``</s>`` ends it."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        """Open the model at ``path``.

        Raises:
            BundleError: it is damaged, or no T5 tokenizer of at most ``vocab_size`` tokens.
        """
        import sentencepiece

        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise BundleError(f"tokenizer {path} cannot be read: {error}") from error
        size = self._pieces.get_piece_size()
        if size > vocab_size:
            raise BundleError(f"tokenizer {path} has {size} tokens; text.vocab_size is {vocab_size}")
        special = [self._pieces.id_to_piece(i) for i in (PAD, EOS, UNKNOWN)] if size > UNKNOWN else []
        if special != ["<pad>", "</s>", "<unk>"]:
            raise BundleError(f"tokenizer {path} begins with {special}; T5's begins with <pad>, </s>, <unk>")
        self._ids = {piece: i for i, piece in enumerate(special)}
        self._special = re.compile(f"({'|'.join(map(re.escape, special))})")

    def encode(self, text: str, max_length: int) -> list[int]:
        """Token ids that end with ``</s>``; a text that is too long loses its last words."""
        return [*self._tokens(text)[: max_length - 1], EOS]

    def lost(self, text: str, max_length: int) -> tuple[int, str]:
        """How many tokens of a text `encode` leaves out, and their words."""
        ids = self._tokens(text)[max_length - 1 :]
        return len(ids), self._pieces.decode(ids)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._special.split(text):
            ids += [self._ids[part]] if part in self._ids else self._pieces.encode(part)
        return ids


class TextEncoder:
    """The opened graph ``text_encoder`` with its tokenizer; it remembers the last few prompts."""

    def __init__(self, session: Session, tokenizer: Tokenizer, config: TextConfig) -> None:
        self._session, self._tokenizer, self._config = session, tokenizer, config
        self._encoded = lru_cache(CACHED_PROMPTS)(self._run)

    def encode(self, prompt: str) -> Text:
        """The embedding of a prompt, cleaned as `caption` does."""
        return self._encoded(self.caption(prompt))

    def encode_all(self, prompts: Sequence[str]) -> None:
        """Encode the empty prompt and the first of ``prompts``, as many as are remembered."""
        self.null()
        for prompt in prompts[: CACHED_PROMPTS - 1]:
            self.encode(prompt)

    def cut(self, prompt: str) -> PromptCut | None:
        """The event for a prompt that is too long; ``None`` for one that fits."""
        max_length = self._config.max_length
        lost_tokens, lost_text = self._tokenizer.lost(self.caption(prompt), max_length)
        if not lost_tokens:
            return None
        return PromptCut(prompt=prompt, max_tokens=max_length, lost_tokens=lost_tokens, lost_text=lost_text)

    def caption(self, prompt: str) -> str:
        """The prompt in the form that the encoder was trained on: cleaned twice where the configuration says so.

        Raises:
            OptionsError: no word is left.
        """
        caption = clean_caption(clean_caption(prompt)) if self._config.clean_caption else prompt
        if not re.search(r"[^\W_]", caption):
            raise OptionsError(f"prompt is {prompt!r:.80}; no word is left after cleaning (only English is understood)")
        return caption

    def null(self) -> Text:
        """The embedding of the empty prompt, which the token model's guidance steers away from."""
        return self._encoded("")

    def _run(self, caption: str) -> Text:
        ids = np.array([self._tokenizer.encode(caption, self._config.max_length)], np.int64)
        outputs = self._session.run({"input_ids": ids, "attention_mask": np.ones(ids.shape, np.bool_)})
        return Text(np.asarray(outputs["last_hidden_state"]))
