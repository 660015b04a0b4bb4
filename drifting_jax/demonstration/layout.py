"""What both pages have: the picture with its line and downloads, and how calls wait."""

from typing import Any

# While a slider moves, the newest position counts. Values come as the browser sends them, so that
# all wrong ones get a line of ours.
QUEUED: dict[str, Any] = {
    "trigger_mode": "always_last",
    "preprocess": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}


def outputs_beside(gradio: Any, *, prefix: str) -> list[Any]:
    """Returns a line of text, a picture, and buttons for its PNG and npz files, in a column."""
    with gradio.Column(scale=3, min_width=300, elem_classes="result"):
        line = gradio.Markdown("", elem_id=f"{prefix}-line")
        picture = gradio.Image(
            type="filepath",
            format="png",
            interactive=False,
            show_label=False,
            buttons=[],
            elem_id=f"{prefix}-picture",
            elem_classes="picture",
        )
        with gradio.Row(equal_height=True):
            png = gradio.DownloadButton(
                "Download PNG", size="sm", min_width=120, elem_id=f"{prefix}-png"
            )
            npz = gradio.DownloadButton(
                "Download npz", size="sm", min_width=120, elem_id=f"{prefix}-npz"
            )
    return [line, picture, png, npz]
