"""The progress bar."""

import sys

from tqdm import tqdm


def progress_bar(
    total: int, *, initial: int = 0, description: str = "", enabled: bool = True
) -> tqdm:
    """Returns a tqdm bar with the time left, which is silent if stderr is not a terminal.

    Args:
      total: Steps of the whole run.
      initial: Steps already done.
      description: What is being done.
      enabled: False on all processes but the main process.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=None if enabled and sys.stderr else True,
        dynamic_ncols=True,
        smoothing=0.05,
    )
