"""The flags that choose a generator: which go together, and what is said of an average."""

from types import SimpleNamespace

import pytest

from drifting_jax.commands import generator_choice
from drifting_jax.errors import UserError

NONE = {"workdir": "", "weights": "", "vae": "", "ema_decay": None, "ema_sigma": None, "step": None}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "expected one of --workdir and --weights"),
        ({"workdir": "a", "weights": "b"}, "expected one of --workdir and --weights"),
        ({"weights": "b", "ema_decay": 0.9}, "--ema_decay goes with --workdir"),
        ({"weights": "b", "ema_sigma": 0.1}, "--ema_sigma goes with --workdir"),
        ({"weights": "b", "step": 3}, "--step goes with --workdir"),
    ],
)
def test_flags_that_do_not_go_together(given, told):
    with pytest.raises(UserError, match=told):
        generator_choice.chosen_generator(SimpleNamespace(**NONE | given))


def test_the_error_of_an_average_of_a_width_is_printed(monkeypatch, capsys):
    def load_run(workdir, **asked):
        assert (str(workdir), asked["step"]) == ("runs/a", 8)
        return SimpleNamespace(
            step=8, ema_sigma=asked["ema_sigma"], average="width 0.07", fit_error=0.0123
        )

    monkeypatch.setattr(generator_choice, "load_run", load_run)
    values = NONE | {"workdir": "runs/a", "step": 8}
    generator_choice.chosen_generator(SimpleNamespace(**values))
    assert capsys.readouterr().out == ""
    generator_choice.chosen_generator(SimpleNamespace(**values | {"ema_sigma": 0.07}))
    told = "average of width 0.07 at step 8; its profile has a relative error of 0.012\n"
    assert capsys.readouterr().out == told
