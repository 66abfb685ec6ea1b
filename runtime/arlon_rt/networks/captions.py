"""A user's prompt in the form of Open-Sora's training captions: scored and cleaned (docs/spec.md 5.5).

The rules of cleaning are facts of the published pipeline, since they decide token ids. They are stated as tables: a
pattern, and what takes its place. Only English survives: CJK ideographs are removed.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote_plus

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_EXTENSION = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    r"\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0"
    r"\uFE31\uFE32\uFE58\uFE63\uFF0D"
)

_LINKS = (
    ("<person>", "person"),
    (rf"\b((?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN}))", ""),
    (rf"\b((?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN}))", ""),
)
_MARKS = (
    (r"@[\w\d]+\b", ""),  # nicknames
    (r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),  # CJK
    (f"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.{_EXTENSION}", ""),  # file names
    (r"[\"\']{2,}", '"'),
    (r"[.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_PHRASES = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes: jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_EXTENSION}(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes: 640x480, with a Latin or a Cyrillic x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_EDGES = (
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'_,\-:;]", ""),
    (r"[\'_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def with_scores(
    prompt: str, suffix: str, *, aesthetic_score: float | None = None, motion_score: float | None = None,
    camera_motion: str | None = None,
) -> str:
    """The prompt with `` aesthetic score: 6.5. motion score: 4.0. camera motion: pan right.`` at its end.

    ``suffix`` replaces an aesthetic score of ``None``. A score that the prompt names itself is not repeated.
    """
    endings = (
        suffix if aesthetic_score is None else f" aesthetic score: {aesthetic_score:.1f}.",
        "" if motion_score is None else f" motion score: {motion_score:.1f}.",
        "" if camera_motion is None else f" camera motion: {camera_motion}.",
    )
    scored = prompt
    for ending in endings:
        subject, colon, _ = ending.strip().lower().partition(":")
        if subject + colon not in prompt.lower():
            scored += ending
    return scored


def clean_caption(caption: str) -> str:
    """The caption after one pass of cleaning; the published pipeline makes two."""
    import ftfy

    text = _apply(_LINKS, unquote_plus(caption).strip().lower())
    text = _apply(_MARKS, _without_tags(text))
    if len(re.findall(r"[-_]", text)) > 3:  # words-joined-like-this
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_EDGES, _apply(_PHRASES, text)).strip()


def _apply(rules: tuple[tuple[str, str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


class _TextOfHTML(HTMLParser):
    text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def _without_tags(text: str) -> str:
    parser = _TextOfHTML()
    parser.feed(text)
    parser.close()
    return parser.text
