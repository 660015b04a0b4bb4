"""Processes of one run: how they join, and how they end where one of them has failed."""

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

from drifting_jax.errors import TransientError, UserError

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
    """Joins the processes of a run, before any other use of JAX; no-op where there is one.

    What is not given is read from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`; what is still missing is known to JAX where a SLURM step of several tasks or
    a TPU slice of several hosts started this process.

    Args:
        coordinator_address: `host:port` of process 0.
        num_processes: processes of the run.
        process_id: this process, `0 … num_processes - 1`.
        heartbeat_timeout_seconds: without a sign of life from a process after which the others end.

    Raises:
        UserError: some of the three are known, others not and nothing tells them, or one is none.
    """
    if jax.distributed.is_initialized():
        return
    env = os.environ
    count = env.get("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    index = env.get("JAX_PROCESS_ID") if process_id is None else process_id
    address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS")
    if address and not re.fullmatch(r"(.+):(\d{1,5})", address):  # JAX would crash
        raise UserError(f"expected --coordinator=HOST:PORT of process 0, found {address!r}")
    told = {
        "coordinator": address,
        "num_processes": None if count is None else int(count),
        "process_id": None if index is None else int(index),
    }
    if None not in (count, index) and not 0 <= int(index) < int(count):
        raise UserError(
            f"expected a process_id from 0 to {int(count) - 1} for {count} processes, found {index}"
        )
    missing = [name for name, value in told.items() if value is None]
    if told["num_processes"] == 1:
        return
    if not missing or _launched_as_several(env):
        previous = signal.getsignal(signal.SIGTERM)
        told["coordinator_address"] = told.pop("coordinator")
        jax.distributed.initialize(**told, heartbeat_timeout_seconds=heartbeat_timeout_seconds)
        if threading.current_thread() is threading.main_thread():
            # JAX takes the signal for a notice that nobody here reads: a run that is only starting
            # would not end.
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
    elif len(missing) < len(told):
        raise UserError(
            f"expected {', '.join(told)} for a run of several processes, found no "
            f"{' and no '.join(missing)}; give {', '.join(f'--{x}' for x in missing)} or set "
            f"{', '.join(_VARIABLES[x] for x in missing)}"
        )


def is_main_process() -> bool:
    """Whether this is process 0, which alone prints and writes what all of them share."""
    return jax.process_index() == 0


def end_soon(status: int = 1) -> None:
    """After a failure: makes sure that this process ends, if it is one of several.

    At their end, processes wait for each other. Where one has failed the others may be far from it,
    or gone, and would be waited for until no heartbeat comes, or for minutes. So the wait is cut:
    that leaves time for a failure that all of them share.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        timer = threading.Timer(_WAIT_AFTER_FAILURE_SECONDS, os._exit, (status,))
        timer.daemon = True
        timer.start()


def _launched_as_several(env: Mapping[str, str]) -> bool:
    """Whether a SLURM step or a TPU slice of several hosts started this process."""
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 or int(env.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return True
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    # JAX sets TPU_ML_PLATFORM when imported where TPU chips are; there, the virtual machine's
    # metadata server names the hosts of the slice.
    if not hosts and "TPU_ML_PLATFORM" in env and "TPU_SKIP_MDS_QUERY" not in env:
        hosts = _hosts_of_slice(env.get("GCE_METADATA_IP", "metadata.google.internal"))
    return "," in (hosts or "")


def _hosts_of_slice(server: str) -> str:
    """What the metadata server says of a slice's hosts; empty where there is no slice.

    Raises:
      UserError: it does not answer. To go on alone would be another run in the same workdir.
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
            # A TPU outside of a Cloud slice has no such attribute, or no such server.
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
