"""The paper's claims at this scale: what is measured, and that the plots show it."""

import json

import numpy as np
import pytest
from PIL import Image

from demo import claims, plots
from demo.claims import COLUMNS, STEPS, VARIANTS, WRONG, with_wrong
from demo.score import psnr


@pytest.mark.parametrize("share", WRONG)
def test_this_share_of_tokens_is_replaced(share: float):
    tokens = np.full((200, 4, 4), 600)
    found = with_wrong(tokens, share, 512, np.random.default_rng(1))
    assert np.mean(found != 600) == pytest.approx(share, abs=0.02)
    assert found[found != 600].max(initial=0) < 512


def test_more_wrong_tokens_are_those_of_a_smaller_share_and_others():
    tokens = np.full((50, 4, 4), 600)
    few, many = (with_wrong(tokens, share, 512, np.random.default_rng(2)) for share in (0.05, 0.2))
    np.testing.assert_array_equal(many[few != 600], few[few != 600])


def test_psnr_is_that_of_the_formula():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + np.uint8(51)) == pytest.approx(-20 * np.log10(0.2))


def rows_of_steps() -> list[claims.Row]:
    return [{"inject": inject, "steps": steps, **dict.fromkeys(COLUMNS, 0.5), "psnr": None if steps == 30 else 20.0}
            for inject in (True, False) for steps in STEPS]


def test_plots_are_drawn_of_both_reports(tmp_path):
    rows = [{"variant": v, "wrong": w, **dict.fromkeys(COLUMNS, 1 - w)} for v in VARIANTS for w in WRONG]
    for name, content in (("steps", rows_of_steps()), ("variants", rows)):
        (tmp_path / name).write_text(json.dumps({"rows": content}))
    sizes = []
    for options in ([], ["--variants", str(tmp_path / "variants")]):
        plots.main(["--steps", str(tmp_path / "steps"), *options, "--to", str(tmp_path / "claims.png")])
        with Image.open(tmp_path / "claims.png") as picture:
            sizes.append(picture.size)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 30
    assert sizes[1][1] > 1.5 * sizes[0][1]


def test_the_table_names_every_setting(capsys):
    from rich.console import Console

    Console(width=160).print(claims.table(rows_of_steps()))
    printed = capsys.readouterr().out
    assert "inject" in printed
    assert "psnr" in printed
    assert printed.count("50%") == len(STEPS) * 2 * len(COLUMNS)
