"""The documentation's links, file names, commands and config fields exist; its Python runs."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import drifting_jax as dj
from drifting_jax.config import ConfigDict, base_config, validate
from drifting_jax.config.defaults import SECTIONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # what users read
ALL = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SUFFIXES = ("gif", "json", "jsonl", "md", "npy", "npz", "png", "py", "safetensors")
FIELD = re.compile(r"--config\.([\w.]+?)(?:=(.*))?")
FIELDS = [base_config(task).to_dict() for task in SECTIONS]
FOLDERS = (
    *("benchmarks", "configs", "docs", "docs_site", "drifting_jax", "launch", "notebooks", "tests"),
)
# Programs that are not ours. Any other first word of a command is a file of the repository.
OTHERS = {
    *("apt-get", "docker", "gcloud", "git", "pip", "pytest", "ruff", "sbatch", "tensorboard"),
}
# Files that a command writes, and what they are copies of.
WRITTEN = {
    "sampler/sample.py": "drifting_jax/commands/exported_sample.py",
    "pair_sampler/sample.py": "drifting_jax/pairs/exported_pairs.py",
}
SETUP = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
# What a block of Python needs that the tests do not have: a run, weights, or time.
NEEDS_MORE = {"load_run", "load_generator", "load_network", "load_policy", "load_pairs", "train"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def prose_of(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def blocks_of(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of a page: of its bash blocks, and of prose in backticks."""
    started = r"(?:python|pytest|pip install|sbatch|tests/\w+\.sh|launch/\w+\.sh(?= -| \w))"
    prose = prose_of(text).replace("\n", " ")
    lines = re.findall(rf"`((?:\w+=\S+ )*{started} [^`]+)`", prose)
    for block in blocks_of(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            lines += line.split(" && ")
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(path.read_text(encoding="utf-8")), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def flags_of(source: Path) -> set[str]:
    """The flags that a program defines, itself or in a module of `commands` that it imports.

    Those of a script of the shell are in the comment at its top.
    """
    text = source.read_text(encoding="utf-8")
    if source.suffix != ".py":
        return set(re.findall(r"--(\w+)", text.partition("\n\n")[0]))
    found = set(re.findall(r"\b(?:DEFINE_\w+|add_argument)\(\s*\"(?:--)?(\w+)\"", text))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("drifting_jax.commands"):
            for module in (node.module, *(f"{node.module}.{name.name}" for name in node.names)):
                path = ROOT / f"{module.replace('.', '/')}.py"
                if path.is_file():
                    found |= flags_of(path)
    return found


def load_config(value: str) -> ConfigDict:
    """The config of a value of --config, "configs/<name>.py[:variant]"."""
    name, _, variant = value.partition(":")
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def parsed(text: str):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def is_example(word: str) -> bool:
    """Whether a word stands for what the reader has to fill in."""
    return "…" in word


def check_config_flags(words: list[str]) -> None:
    """The config file exists, with its variant, and its fields take the values that are given."""
    named = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    fields = [found.groups() for word in words if (found := FIELD.fullmatch(word))]
    named = [name for name in named if not is_example(name)]
    if not named:
        for name, _ in fields:
            assert is_field(name), f"config.{name} does not exist"
        return
    config = load_config(named[0])
    for name, value in fields:
        section, _, leaf = name.rpartition(".")
        place = config
        for part in filter(None, section.split(".")):
            place = place[part]
        assert leaf in place, f"config.{name} does not exist"
        if value is not None and not is_example(value):
            place[leaf] = parsed(value)
    validate(config)


def is_field(name: str) -> bool:
    """Whether a task's config has such a field or section."""
    for values in FIELDS:
        for part in name.split("."):
            values = values.get(part) if isinstance(values, dict) else None
        if values is not None:
            return True
    return False


@pytest.mark.parametrize("page", names(ALL))
def test_links_lead_to_files_and_headings_that_exist(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page} links to {target}"


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in names(ALL) if name != "README.md" and f"]({name})" not in text]


def test_every_picture_is_shown():
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert not [p.name for p in (ROOT / "docs" / "images").iterdir() if p.name not in text]


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    assert not [line for line in lines if len(line) > 120 and not line.startswith("[")]


@pytest.mark.parametrize("page", names(PAGES))
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)"
    for name in re.findall(pattern, text):
        assert (ROOT / name).exists(), f"{page} names {name}"


@pytest.mark.parametrize("page", names(PAGES))
def test_config_fields_that_a_page_names_exist(page):
    prose = prose_of((ROOT / page).read_text(encoding="utf-8"))
    sections = {name for values in FIELDS for name in values if isinstance(values[name], dict)}
    for quoted in re.findall(r"`([^`\n]+)`", prose):
        for word in quoted.split():
            if found := FIELD.fullmatch(word):
                assert is_field(found[1]), f"{page} names {word}"
            word = word.partition("=")[0].removeprefix("config.")
            section, _, rest = word.partition(".")
            if section in sections and re.fullmatch(r"[\w.]+", rest) and rest not in SUFFIXES:
                assert is_field(word), f"{page} names config.{word}"


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """The program that a command starts, a file where it is ours, and its arguments."""
    while words and (assigned := re.fullmatch(r"\w+=(?:\$\((.+))?.*", words[0])):
        words = [assigned[1], *words[1:]] if assigned[1] else words[1:]
    if "python" in words[:1]:
        if words[1] == "-m":
            module, *rest = words[2:]
            ours = module.startswith("drifting_jax.")
            return f"{module.replace('.', '/')}.py" if ours else module, rest
        return words[1], words[2:]
    return (words[0], words[1:]) if words else ("", [])


def check_flags(program: str, words: list[str]) -> None:
    """The program has the flags that it is given; those of main.py come after a launcher's."""
    flags = flags_of(ROOT / program)
    if program == "launch/slurm.sh":
        flags |= flags_of(ROOT / "main.py")
    elif "--" in words and program.startswith("launch/"):
        cut = words.index("--")
        check_flags("main.py", words[cut + 1 :])
        words = words[:cut]
    for word in words:
        flag = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and not FIELD.fullmatch(word):
            assert flag in flags, f"{program} has no --{flag}"


def extras_of(words: list[str]) -> list[str]:
    """The extras of our package that a command installs."""
    return [name for word in words for name in re.findall(r"^\.\[(\w[\w-]*)\]$", word)]


def literal_of_setup(name: str) -> ast.expr:
    """The expression of an argument of `setup`."""
    return next(n.value for n in ast.walk(SETUP) if isinstance(n, ast.keyword) and n.arg == name)


@pytest.mark.parametrize("page", names(ALL))
def test_commands_of_a_page_exist(page):
    extras = [key.value for key in literal_of_setup("extras_require").keys]
    for words in commands_of((ROOT / page).read_text(encoding="utf-8")):
        check_config_flags(words)
        program, rest = program_of(words)
        if program == "sbatch":  # its own options come before our script
            rest = rest[rest.index("launch/slurm.sh") :] if "launch/slurm.sh" in rest else [""]
            program, *rest = rest
        if program == "pytest":
            missing = [w for w in rest if w.startswith("tests/") and not (ROOT / w).exists()]
            assert not missing, f"{page}: {missing}"
        assert set(extras_of(rest)) <= set(extras), f"{page}: {' '.join(words)}"
        program = WRITTEN.get(program, program)
        if program.endswith((".py", ".sh")) or "/" in program:
            assert (ROOT / program).is_file(), f"{page}: {' '.join(words)}"
            check_flags(program, rest)
        else:
            assert not program or program in OTHERS, f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("page", names(ALL))
def test_blocks_of_commands_are_bash(page):
    for block in blocks_of((ROOT / page).read_text(encoding="utf-8"), "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True, timeout=60)


def test_installed_commands_are_named_and_exist():
    prose = prose_of((ROOT / "docs" / "quick_start.md").read_text(encoding="utf-8"))
    installed = dict(re.findall(r"(drifting-\w+)=drifting_jax\.(\w+):cli", ast.unparse(SETUP)))
    assert set(re.findall(r"`(drifting-\w+)`", prose)) == set(installed)
    assert all((ROOT / "drifting_jax" / f"{name}.py").is_file() for name in installed.values())


def test_the_readers_see_commands_flags_and_fields(tmp_path):
    text = (
        "Run `python main.py --config=configs/digits.py\n--dry_run`.\n\n## On `x`, twice\n\n"
        "```bash\npip install x && A=1 python -m drifting_jax.sample \\\n  --seed=0  # b\n```\n"
    )
    assert commands_of(text) == [
        ["python", "main.py", "--config=configs/digits.py", "--dry_run"],
        ["pip", "install", "x"],
        ["A=1", "python", "-m", "drifting_jax.sample", "--seed=0"],
    ]
    (tmp_path / "page.md").write_text(text)
    assert anchors_of(tmp_path / "page.md") == {"on-x-twice"}
    assert {"config", "workdir", "topology"} <= flags_of(ROOT / "main.py")
    assert {"reference", "cfg_scales"} <= flags_of(ROOT / "drifting_jax" / "evaluate.py")
    assert program_of(["A=1", "python", "-m", "drifting_jax.sample", "--seed=0"]) == (
        "drifting_jax/sample.py",
        ["--seed=0"],
    )
    assert program_of(["a=$(git", "log)"]) == ("git", ["log)"])
    with pytest.raises(AssertionError, match="no --nothing"):
        check_flags("launch/local.sh", ["--devices=4", "--", "--nothing"])
    with pytest.raises(AssertionError, match="no --workdir"):
        check_flags("launch/local.sh", ["--workdir=a", "--"])
    assert extras_of(["install", "-e", ".[tpu]"]) == ["tpu"]
    assert is_field("train.num_steps") and is_field("mesh") and not is_field("train.nothing")
    with pytest.raises(AssertionError, match="does not exist"):
        check_config_flags(["--config=configs/digits.py", "--config.train.nothing=1"])
    with pytest.raises(ValueError, match=r"optim\.schedule"):
        check_config_flags(["--config=configs/digits.py", "--config.optim.schedule=linear"])


def python_blocks() -> list[tuple[str, str]]:
    """(page, code) of every block of Python but the README's, which runs below."""
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in names(ALL[1:])}
    return [(page, code) for page, text in texts.items() for code in blocks_of(text, "python")]


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_python_of_a_page_runs(page, code, capsys):
    tree = ast.parse(code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "dj"
    }
    assert used <= set(dj.__all__), page
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("drifting_jax."):
            module, imported = importlib.import_module(node.module), {n.name for n in node.names}
            assert all(hasattr(module, name) for name in imported), page
            used |= imported
    assert used or "drifting_jax" not in code, page
    if used and not used & NEEDS_MORE:
        exec(compile(code, page, "exec"), {})
        assert code.count("print(") == len(capsys.readouterr().out.splitlines())


def test_the_example_runs(capsys):
    (example,) = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    found = {}
    exec(compile(example, "README.md", "exec"), found)
    assert found["v"].shape == (64, 2)
    assert len(capsys.readouterr().out.split("[")) == 2  # the loss, and a drift per temperature
