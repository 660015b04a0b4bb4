"""What programs around this one must not change: JAX's settings, and whether output can be written.

People set variables once, for all their programs. The numbers of a run must not depend on them.
"""

import contextlib
import glob
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import jax

from drifting_jax.compatibility import enable_x64
from drifting_jax.errors import TransientError, UserError, first_line
from drifting_jax.files import shown

# {setting of JAX: its value here}. Each is JAX's own default, and each has a variable, such as
# JAX_ENABLE_X64, that changes numbers or makes programs fail.
JAX_SETTINGS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_softmax_custom_jvp": False,
    "jax_default_device": None,
    "jax_disable_jit": False,
    "jax_debug_nans": False,  # steps that are not finite are skipped and counted
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_check_tracer_leaks": False,
    "jax_enable_checks": False,
    "jax_no_execution": False,
    "jax_no_tracing": False,
    "jax_thread_guard": False,
    "jax_disallow_mesh_context_manager": False,
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_transfer_guard_device_to_device": None,
}
_CONTEXTS: dict[str, Any] = {
    "jax_enable_x64": enable_x64,
    "jax_threefry_partitionable": jax.threefry_partitionable,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
}
_MAY_PASS = ("already in use", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def settle_jax() -> list[str]:
    """Gives JAX the settings of `JAX_SETTINGS`; commands call it before they compute anything.

    Returns:
      What was set otherwise, such as ["jax_enable_x64=True"].
    """
    return [f"{name}={value}" for name, value in _settle().items()]


@contextlib.contextmanager
def settled_jax() -> Iterator[None]:
    """Context and decorator in which JAX has the settings of `JAX_SETTINGS`; the library's edge.

    Of what the caller has set with a `with` statement, only that which changes numbers is undone.
    """
    before = _settle()
    try:
        with contextlib.ExitStack() as stack:
            for name, context in _CONTEXTS.items():
                if _differs(name, JAX_SETTINGS[name]):
                    stack.enter_context(context(JAX_SETTINGS[name]))
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _settle() -> dict[str, Any]:
    """Settles JAX for all threads and returns the values that were others."""
    before: dict[str, Any] = {}
    if any(_differs(name, wanted) for name, wanted in JAX_SETTINGS.items()):
        # What a `with` statement has set holds in its own thread; in another one is the rest.
        thread = threading.Thread(target=lambda: before.update(_others()))
        thread.start()
        thread.join()
    for name in before:
        jax.config.update(name, JAX_SETTINGS[name])
    return before


def _others() -> dict[str, Any]:
    """The settings of this thread that differ from `JAX_SETTINGS`."""
    return {
        name: getattr(jax.config, name)
        for name, wanted in JAX_SETTINGS.items()
        if _differs(name, wanted)
    }


def _differs(name: str, wanted: Any) -> bool:
    """Whether this version of JAX has a setting and its value is another one."""
    found = getattr(jax.config, name, wanted)
    return getattr(found, "value", found) != wanted


_CACHE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled() -> None:
    """Makes JAX keep compiled programs in the user's cache folder, for the next start.

    JAX_COMPILATION_CACHE_DIR names another folder, or none if it is empty. Without a cache folder
    that can be made, nothing is kept.
    """
    if _CACHE in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home folder
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "drifting_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))


# {what the kernel shows of an accelerator: the extra of the installation that uses it}.
_ACCELERATORS = {
    "/dev/nvidia[0-9]*": "cuda",
    "/dev/kfd": "rocm",
    "/dev/accel[0-9]*": "tpu",
}


def check_devices() -> None:
    """Starts JAX's devices.

    If the machine has an accelerator that JAX does not use, a line on stderr says so, unless
    JAX_PLATFORMS or CUDA_VISIBLE_DEVICES are set.

    Raises:
      UserError: there are no devices of the platform that JAX_PLATFORMS names.
      TransientError: another process holds them, or they do not answer.
    """
    platforms = getattr(jax.config, "jax_platforms", None)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # without a plugin, JAX's reason is an assert
        kind = TransientError if any(x in str(error) for x in _MAY_PASS) else UserError
        found = f"JAX_PLATFORMS={platforms}" if platforms else "JAX"
        reason = first_line(error).partition(" (set JAX_PLATFORMS")[0]
        raise kind(
            f"{found} finds no devices: {reason}; choose others with JAX_PLATFORMS"
        ) from None
    if devices[0].platform != "cpu" or platforms or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    for pattern, extra in _ACCELERATORS.items():
        for path in sorted(glob.glob(pattern))[:1]:
            print(
                f"note: this runs on the CPU. JAX does not use the machine's accelerator ({path}): "
                f"pip install -e '.[{extra}]', or set JAX_PLATFORMS=cpu to run without it",
                file=sys.stderr,
            )


def guard_output() -> None:
    """Makes sure that nothing printed can end this program; what cannot be printed is dropped.

    That is so where stdout or stderr is closed, on a full disk, or a pipe whose reader has gone,
    and where its encoding lacks a character. It holds until the interpreter has ended.
    """
    for number in (0, 1, 2):  # a closed one would be given to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Output):
            continue
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end)
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace")
        setattr(sys, name, cast(TextIO, _Output(stream)))


class _Output:
    """A stream of text that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
