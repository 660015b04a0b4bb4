"""Trains: `python main.py --config=configs/digits.py`; the same command resumes the run.

--config.section.field=value changes a field of the config, --workdir the directory of the run.
Exit status: 0 the run is complete; 1 a failure after which the same command may succeed; 2 a
mistake in the command or the data; 75 stopped by SIGTERM, SIGHUP or SIGUSR1 and 130 by Ctrl-C, all
after a save (a second Ctrl-C stops without one).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from drifting_jax.commands.command_line import (
    exit_status,
    given_fields,
    parse_flags,
    run_main,
)
from drifting_jax.config import default_workdir, resolve
from drifting_jax.distributed import processes
from drifting_jax.errors import UserError
from drifting_jax.surroundings import check_devices
from drifting_jax.training import dry_run, run
from drifting_jax.workdir.orbax_settings import quiet_orbax

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file: PATH.py[:VARIANT].")
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run; default: runs/<config>.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if several.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, if several.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, if several.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout_seconds",
    processes.HEARTBEAT_TIMEOUT_SECONDS,
    "Seconds without a sign of life from a process after which the others stop.",
    lower_bound=5,
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what a step needs; run nothing.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "With --dry_run: a GPU or a TPU slice to compile for: h100, h100:8, v5e:8x8."
)
_PRICE = flags.DEFINE_float(
    "price_per_hour", None, "With --dry_run: price of one device for an hour, in any currency."
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> int:
    """Joins the processes of the run, resolves the config and runs its task."""
    if len(argv) > 1:
        print(f"error: expected flags alone; found {' '.join(argv[1:])!r}", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    quiet_orbax()
    try:
        config = resolve(_CONFIG.value)
        if _TOPOLOGY.value and not _DRY_RUN.value:
            raise UserError("--topology goes with --dry_run")
        if _PRICE.value is not None and not _DRY_RUN.value:
            raise UserError("--price_per_hour goes with --dry_run")
        if _TOPOLOGY.value:  # its devices are not those of these processes
            print(dry_run.dry_run(config, topology=_TOPOLOGY.value, price_per_hour=_PRICE.value))
            return 0
        processes.initialize(
            coordinator_address=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
            heartbeat_timeout_seconds=_HEARTBEAT.value,
        )
        check_devices()
        if _DRY_RUN.value:
            report = dry_run.dry_run(config, price_per_hour=_PRICE.value)
            if jax.process_index() == 0:
                print(report)
            return 0
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(path)
        return run.run(config, workdir=workdir, given=given_fields(sys.argv))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = exit_status(error)
        processes.end_soon(status)
        return status
    except BaseException:
        processes.end_soon()
        raise


if __name__ == "__main__":
    run_main(main, flags_parser=parse_flags)
