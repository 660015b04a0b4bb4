import re

import pytest

from drifting_jax.evaluation.metrics.catalogue import FIGURES

NAMES = ["fid", "sfid", "inception_score", "kid"]
NAMES += ["precision", "recall", "density", "coverage", "fd_dinov2"]


def test_the_catalogue_has_its_names_in_order():
    assert list(FIGURES) == NAMES
    lower = [name for name, info in FIGURES.items() if info.better == "lower"]
    assert lower == ["fid", "sfid", "kid", "fd_dinov2"]
    with pytest.raises(TypeError):
        FIGURES["fid"] = None


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is_and_where_it_comes_from(name):
    info = FIGURES[name]
    assert info.name.replace(" ", "_").replace("-", "_").lower() == name and info.better in (
        "lower",
        "higher",
    )
    assert re.search(r"arXiv \d{4}\.\d{5}$", info.source)
    assert "\n" not in info.definition and len(info.definition) > 60
