"""Where a run keeps what it makes, below its workdir."""

from pathlib import Path

COMPLETE = "complete.json"  # marks a run that ends without metrics of its samples


def generator_checkpoints(workdir: Path) -> Path:
    """Returns the directory of the generator's (or the toy's) checkpoints."""
    return workdir / "checkpoints"


def encoder_checkpoints(workdir: Path) -> Path:
    """Returns the directory of the encoder's checkpoints."""
    return workdir / "encoder" / "checkpoints"


def snapshots(workdir: Path) -> Path:
    """Returns the directory of the snapshots of the generator's averages."""
    return workdir / "snapshots"


def list_contents(workdir: Path) -> str:
    """Returns a table of the files and folders that are there, one a line, with what they hold."""
    entries = {
        "report.html": "samples, their nearest training images, and any metrics over alpha",
        "evaluation.json": "the metrics",
        "sweep.json": "the metrics of every average and alpha",
        "samples": "pictures",
        "samples/nearest.png": "samples on the left, then their nearest training images",
        "samples/final.npz": "the samples that were measured",
        "samples/training.gif": "the same samples over training",
        "drift.gif": "q drifting to p",
        "frames": "the points in it",
        "field.png": "the drifting field",
        "drift.png": "raw drift and diversity over training",
        "metrics.jsonl": "all scalars, one line per logged step",
        "tensorboard": f"the same: tensorboard --logdir {workdir}/tensorboard",
        "tracker.json": "the id of the run's page at a tracker",
        "checkpoints": "state, averages, queue, position",
        "snapshots": "averages over training, for --ema_sigma",
        "encoder/checkpoints": "the pre-trained encoder",
        "data.json": "what the data was",
        "config.json": "resolved config, versions",
        "encoder_parameters.txt": "the encoder's parameters, by name",
        "generator_parameters.txt": "the generator's parameters, by name",
        "policy_parameters.txt": "the policy's parameters, by name",
        "pairs_parameters.txt": "the parameters of the generator of pairs, by name",
    }
    there = {str(workdir / name): words for name, words in entries.items()}
    there = {path: words for path, words in there.items() if Path(path).exists()}
    width = max(map(len, there), default=0)
    return "\n".join(f"  {path:<{width}}  {words}" for path, words in there.items())
