"""The page of rollouts: success of each seed, how episodes ended, animations."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.control.measurement import KINDS, REPORT_FILE, animation_path
from drifting_jax.control.pictures import paths_picture
from drifting_jax.control.rollouts import Episode
from drifting_jax.evaluation.report.document import data_uri, protocol_section, write_document
from drifting_jax.evaluation.report.tables import number


def write_page(
    out: Path,
    episodes: Mapping[int, Sequence[Episode]],
    summary: Mapping[str, Any],
    *,
    title: str,
) -> Path:
    """Writes report.html into a folder of results and returns its path.

    Args:
      out: the folder, with the animations.
      episodes: by seed.
      summary: of `measure`.
      title: heading.
    """
    sections = [
        _tiles(summary),
        protocol_section(_protocol(episodes, summary)),
        _table(episodes),
        _paths(episodes, summary),
        _animations(out, episodes),
    ]
    path = out / REPORT_FILE
    write_document(path, title, sections)
    return path


def percent(share: float, deviation: float | None = None) -> str:
    """A share in percent, such as "93.3%" or "93.3 ± 2.3%"."""
    return (
        f"{100 * share:.1f}%"
        if deviation is None
        else f"{100 * share:.1f} ± {100 * deviation:.1f}%"
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    deviation = summary["success_deviation"]
    small = "" if deviation is None else f"± {100 * deviation:.1f}"
    steps = summary["steps_of_a_success"]
    tiles = [
        ("Success", percent(summary["success"]), small),
        ("Steps of a success", "none" if steps is None else f"{steps:.0f}", ""),
        ("Milliseconds per plan", number(summary["milliseconds_per_plan"]), ""),
    ]
    shown = "".join(
        f'<div class="tile"><dt>{name}</dt><dd><b>{value}</b> <small>{more}</small></dd></div>'
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{shown}</dl>\n'


def _protocol(
    episodes: Mapping[int, Sequence[Episode]], summary: Mapping[str, Any]
) -> dict[str, str]:
    limit = summary["max_steps"]
    return {
        "Environment": summary["environment"],
        "Policy": ", ".join(f"{name} {value}" for name, value in summary["policy"].items()),
        "Rollouts": f"{summary['episodes']} for each of the seeds {', '.join(map(str, episodes))}",
        "Steps": f"at most {limit}" if limit else "as many as the environment allows",
        "±": "sample standard deviation over seeds",
        "Time": "median over 20 plans for one observation window, on the devices that JAX found",
    }


def _table(episodes: Mapping[int, Sequence[Episode]]) -> str:
    """Rows for success, steps and endings; a column for each seed."""
    columns = list(episodes.values())
    endings = Counter(e.ending for column in columns for e in column)
    rows = [("Success", [_share(e.success for e in column) for column in columns])]
    rows.append(("Steps of a success", [_mean_steps(column) for column in columns]))
    for ending, _ in endings.most_common():
        shares = [_share(e.ending == ending for e in column) for column in columns]
        rows.append((f"Ended: {ending}", shares))
    head = "".join(f"<th>seed {seed}</th>" for seed in episodes)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return (
        '<section><h2>Rollouts</h2><div class="scroll"><table>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></section>\n"
    )


def _share(holds: Iterable[bool]) -> str:
    """How often something holds, in percent."""
    return percent(float(np.mean(list(holds))))


def _mean_steps(episodes: Sequence[Episode]) -> str:
    steps = [episode.steps for episode in episodes if episode.success]
    return f"{np.mean(steps):.0f}" if steps else "none"


def _paths(episodes: Mapping[int, Sequence[Episode]], summary: Mapping[str, Any]) -> str:
    """All paths of the task two_ways; nothing for other tasks."""
    if summary["environment"] != "two_ways":
        return ""
    every = [episode for found in episodes.values() for episode in found]
    image = data_uri(paths_picture({f"{len(every)} rollouts": every}))
    return (
        '<section><h2>Paths</h2><figure class="curve">'
        f'<img src="{image}" alt="The paths of all rollouts, around the obstacle.">'
        "</figure></section>\n"
    )


def _animations(out: Path, episodes: Mapping[int, Sequence[Episode]]) -> str:
    figures = []
    for seed, found in episodes.items():
        for kind, success in KINDS.items():
            path = animation_path(out, seed, kind)
            first = next((e for e in found if e.success == success), None)
            if first is not None and path.is_file():
                title = f"Seed {seed}, episode {first.index}"
                caption = html.escape(f"{first.ending} after {first.steps} steps")
                figures.append(
                    f'<figure><img src="{data_uri(path.read_bytes(), "gif")}" width="360" '
                    f'alt="{title}: {caption}"><figcaption><b>{title}</b> {caption}</figcaption>'
                    "</figure>"
                )
    if not figures:
        return ""
    return (
        "<section><h2>The first success and the first failure of each seed</h2>"
        f'<div class="pictures">{"".join(figures)}</div></section>\n'
    )
