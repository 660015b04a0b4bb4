"""What config files use besides fields."""

from pathlib import Path

import pytest

from drifting_jax.config import check_variant, default_workdir, file_beside
from drifting_jax.errors import UserError


def test_workdirs_are_named_after_configs():
    assert default_workdir("configs/digits.py") == Path("runs/digits")
    assert default_workdir("a/b/digits.py:tiny") == Path("runs/digits_tiny")
    assert default_workdir("digits.py:width=3,x/y") == Path("runs/digits_width-3-x-y")


def test_an_unknown_variant_is_named_with_the_known_ones():
    check_variant("a/small.py", "B", ("A", "B"))
    with pytest.raises(UserError, match=r"configs/small\.py has no variant 'C'; it knows A, B"):
        check_variant("a/small.py", "C", ("A", "B"))


def test_a_config_file_reads_another_of_its_folder(tmp_path):
    (tmp_path / "shared.py").write_text("WIDTH = 3\n")
    assert file_beside(str(tmp_path / "small.py"), "shared.py").WIDTH == 3
