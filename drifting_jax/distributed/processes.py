"""The processes of one run: how they join, and how they end after a failure of one of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping

import jax

from drifting_jax.errors import TransientError, UserError, first_line

HEARTBEAT_TIMEOUT_SECONDS = 100  # JAX's own

_WAIT_AFTER_FAILURE_SECONDS = 10.0
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_METADATA_TRIES, _METADATA_PAUSE_SECONDS = 6, 5.0


def initialize(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = HEARTBEAT_TIMEOUT_SECONDS,
) -> None:
    """Joins the processes of a run, before any other use of JAX; does nothing for a single process.

    Values that are not given are read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`. JAX finds those that are still missing if a SLURM step of several tasks or a
    TPU slice of several hosts started this process.

    Args:
        coordinator_address: `host:port` of process 0.
        num_processes: number of processes of the run.
        process_id: number of this process, `0 … num_processes - 1`.
        heartbeat_timeout_seconds: the other processes end when one has given no sign of life for so
            long.

    Raises:
        UserError: some of the three values are known and the others cannot be found, or one of
            them is not valid.
    """
    if jax.distributed.is_initialized():
        return
    env = os.environ
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    index = _number(process_id, "JAX_PROCESS_ID")
    address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS") or None
    port = re.fullmatch(r".+:(\d{1,5})", address or "")
    if address and (port is None or int(port[1]) > 65535):  # JAX would crash
        raise UserError(f"expected --coordinator=HOST:PORT of process 0, found {address!r}")
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(
            f"expected a process_id from 0 to {count - 1} for {count} processes, found {index}"
        )
    known = {"coordinator": address, "num_processes": count, "process_id": index}
    missing = [name for name, value in known.items() if value is None]
    if count == 1:
        return
    if not missing or _launched_as_several(env):
        previous = signal.getsignal(signal.SIGTERM)
        try:
            jax.distributed.initialize(
                coordinator_address=address,
                num_processes=count,
                process_id=index,
                heartbeat_timeout_seconds=heartbeat_timeout_seconds,
            )
        except (KeyError, ValueError) as error:  # variables of SLURM, MPI or a TPU slice
            raise UserError(
                f"JAX cannot find the processes of this run ({first_line(error)}): a variable of "
                "the cluster is missing or wrong; give --coordinator, --num_processes and "
                "--process_id"
            ) from None
        if threading.current_thread() is threading.main_thread():
            # JAX handles SIGTERM as a notice of preemption, which nothing here reads: a run that is
            # only starting would not end.
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
    elif len(missing) < len(known):
        raise UserError(
            f"expected {', '.join(known)} for a run of several processes, found no "
            f"{' and no '.join(missing)}; give {', '.join(f'--{x}' for x in missing)} or set "
            f"{', '.join(_VARIABLES[x] for x in missing)}"
        )


def _number(given: int | None, variable: str) -> int | None:
    """The number that is given, or that of a variable; an empty one counts as not set.

    Raises:
      UserError: the variable holds no whole number.
    """
    text = os.environ.get(variable, "").strip()
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise UserError(
            f"expected {variable} to be a whole number, found {text!r}: correct or unset it"
        )
    return int(text)


def _count(env: Mapping[str, str], variable: str) -> int:
    """A number that a cluster has set; 1 where it is not set, or set to something else."""
    text = env.get(variable, "").strip()
    return int(text) if text.isdecimal() else 1


def is_main_process() -> bool:
    """Returns whether this is process 0, which alone prints and writes what the processes share."""
    return jax.process_index() == 0


def end_soon(status: int = 1) -> None:
    """Makes sure, after a failure, that this process ends in ten seconds if it is one of several.

    At their end, processes wait for each other. After a failure, the others may be far from their
    end or gone, and this process would wait until their heartbeats time out. The ten seconds leave
    time for the others to end by themselves, when all of them have the same failure.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        timer = threading.Timer(_WAIT_AFTER_FAILURE_SECONDS, os._exit, (status,))
        timer.daemon = True
        timer.start()


def _launched_as_several(env: Mapping[str, str]) -> bool:
    """Returns whether a SLURM step or a TPU slice of several hosts started this process."""
    if any(_count(env, x) > 1 for x in ("SLURM_STEP_NUM_TASKS", "MEGASCALE_NUM_SLICES")):
        return True
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    # JAX sets TPU_ML_PLATFORM at import on machines with TPU chips. There, the metadata server of
    # the virtual machine names the hosts of the slice.
    if not hosts and "TPU_ML_PLATFORM" in env and "TPU_SKIP_MDS_QUERY" not in env:
        hosts = _hosts_of_slice(env.get("GCE_METADATA_IP", "metadata.google.internal"))
    return "," in (hosts or "")


def _hosts_of_slice(server: str) -> str:
    """Returns the metadata server's list of a slice's hosts; "" if there is no slice.

    Raises:
      TransientError: the server does not answer. Going on alone would start a second run in the
        same workdir.
    """
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    for left in reversed(range(_METADATA_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.read().decode()
        except OSError as error:
            # A TPU that is not part of a Cloud slice has no such attribute, or no such server.
            status = getattr(error, "code", None)
            if status == 404 or isinstance(
                getattr(error, "reason", None), socket.gaierror | ConnectionRefusedError
            ):
                return ""
            if not left:
                raise TransientError(
                    f"the metadata server of this virtual machine does not answer ({error}): start "
                    "again, or name the processes of the run with --coordinator, --num_processes "
                    "and --process_id"
                ) from None
            time.sleep(_METADATA_PAUSE_SECONDS)
    raise AssertionError
