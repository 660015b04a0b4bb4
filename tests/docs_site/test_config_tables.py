"""The reference of config fields has every field of every task, with its rules."""

import re

import config_tables
import pytest

from drifting_jax.config import Field, fields

PAGE = config_tables.markdown()
TASKS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def cells(text: str, name: str) -> list[str]:
    """The cells of a field's row, without its name."""
    (found,) = re.findall(rf"^\| `{re.escape(name)}` \| (.*) \|$", text, re.MULTILINE)
    return re.split(r" (?<!\\)\| ", found)


@pytest.mark.parametrize("task", ["generator", "toy", "policy", "pairs"])
def test_every_field_has_a_row(task):
    for name, field in fields(task).items():
        default, _, meaning, on_resume = cells(TASKS[task.capitalize()], name)
        assert str(field.default) in default
        assert on_resume == field.on_resume
        words = re.findall(r"\w+", field.doc)
        assert re.findall(r"\w+", meaning) == words, name


def test_an_encoder_shows_the_fields_that_differ():
    rows = set(re.findall(r"^\| `([\w.]+)`", TASKS["Encoder"], re.MULTILINE))
    assert rows == {"task", "encoder.train.num_steps", "train.num_steps"}
    assert cells(TASKS["Encoder"], "task")[0] == '`"encoder"`'
    assert fields("encoder").keys() == fields("generator").keys()


@pytest.mark.parametrize(
    ("name", "default", "values"),
    [
        ("seed", "`0`", "int; at least 0, at most 4,294,967,295"),
        ("log_every", "`50`", "int; above 0"),
        ("optim.b1", "`0.9`", "float; at least 0, below 1"),
        ("mesh.data", "`-1`", "int; above 0, or -1"),
        ("mesh.rules", "`()`", "tuple, may be empty"),
        ("features.patch_sizes", "`(2, 4)`", "tuple of int, may be empty; above 0"),
        ("data.flip", "`False`", "bool"),
        ("data.path", '`""`', "path"),
        ("data.crop", '`"center"`', "str: `center`, `random_resized`"),
        ("task", '`"generator"`', "str: `generator`, `encoder`, `toy`, `policy`, `pairs`"),
        (
            "extra_encoder.kind",
            '`"none"`',
            "str: `none`, `convnext`, `resnet`, `simclr`, `dinov2`, `dinov2_s`, `dinov2_b`, "
            "`dinov2_l`",
        ),
        ("pixel_encoders.paths", "`()`", "tuple of paths, may be empty"),
    ],
)
def test_types_choices_and_bounds(name, default, values):
    assert cells(TASKS["Generator"], name)[:2] == [default, values]


def test_signs_of_markdown_stay_in_their_cell():
    field = Field("a", 'a | b * c, "d" or x_<n>.txt', choices=("a", "b"))
    assert config_tables.row("name", field) == (
        '| `name` | `"a"` | str: `a`, `b` | a \\| b \\* c, `d` or `x_<n>.txt` | fixed |'
    )


def test_every_config_file_is_listed():
    listed = set(re.findall(r"`configs/(\w+\.py)`", PAGE))
    assert listed == {path.name for path in (config_tables.ROOT / "configs").glob("*.py")}
