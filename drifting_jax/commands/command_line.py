"""Command lines: flags, exit statuses, and mistakes as one line on stderr."""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from drifting_jax.config.checks import unknown_field
from drifting_jax.config.values import flat
from drifting_jax.errors import TransientError, UserError
from drifting_jax.files import expanded
from drifting_jax.surroundings import guard_output, keep_compiled, settle_jax
from drifting_jax.workdir.orbax_settings import quiet_orbax

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def run_main(
    main_function: Callable[[Sequence[str]], int | None],
    *,
    flags_parser: Callable[[Sequence[str]], list[str]],
) -> NoReturn:
    """Runs the main function of a program through absl, apart from its surroundings.

    Nothing that is printed can end it, and no setting of JAX that was made for other programs
    reaches it. Compiled programs are kept for the next start.
    """
    guard_output()
    if ignored := settle_jax():
        print(f"note: settings of JAX that are ignored: {', '.join(ignored)}", file=sys.stderr)
    keep_compiled()
    app.run(main_function, flags_parser=flags_parser)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line with --config; for `run_main(main, flags_parser=parse_flags)`.

    A mistake (no such field, flag or file, a value of a wrong type) ends the process with one line
    on stderr and exit status 2; ml_collections alone would show a traceback.

    Returns:
      The program's name and the arguments that are no flags.
    """
    try:
        argv = _with_home(argv)
        _check_overrides(argv)
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        _end(error)


def given_fields(argv: Sequence[str]) -> list[str]:
    """Returns the fields of the config that a command line sets, by dotted names."""
    return [found.group(1) for argument in argv if (found := _OVERRIDE.match(argument))]


def _with_home(argv: Sequence[str]) -> list[str]:
    """The command line with the home folder for each `~` in front of a value.

    Shells leave a `~` alone after `=`. No flag takes another value that begins with one, so this is
    the one place where the paths of all flags are expanded.

    Raises:
      UserError: there is no such home folder.
    """
    found = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        is_flag = equals and flag.startswith("-")
        found.append(f"{flag}={expanded(value)}" if is_flag else expanded(argument))
    return found


def _reason(error: Exception, argv: list[str]) -> Exception:
    """A UserError for a variant that the file does not take, else an error with a traceback."""
    given = next((x.partition("=")[2] for x in argv if x.lstrip("-").startswith("config=")), "")
    path, colon, variant = given.partition(":")
    if colon and "positional argument" in str(error):
        return UserError(
            f"{path} has no variants; found {variant!r}"
            if variant
            else f"{path} has no variants; leave out the colon"
        )
    return RuntimeError(str(error))


def _check_overrides(argv: list[str]) -> None:
    """Loads the file of --config and checks that it has every field that --config.field sets.

    Raises:
      UserError: There is no such file, variant or field, or the file raised one.
      RuntimeError: The file has a bug.
    """
    alone = flags.FlagValues()
    kept = [argument for argument in argv if not _OVERRIDE.match(argument)]
    holder = config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=kept)
    try:
        alone(kept, known_only=True)
    except flags.Error as error:
        own, inner = None, error.__context__
        while inner is not None:  # ml_collections wraps what get_config() raised
            own, inner = inner if isinstance(inner, UserError) else own, inner.__context__
        raise own or _reason(error, kept) from None
    if holder.value is None:  # asked for help, or forgotten
        return
    if not isinstance(holder.value, ConfigDict):
        path = Path(config_flags.get_config_filename(alone["config"]).partition(":")[0])
        others = ", ".join(sorted(str(other) for other in path.parent.glob("*.py"))) or "none"
        raise UserError(f"--config={path} is not a file that can be read; found there: {others}")
    fields = flat(holder.value)
    for argument in argv:
        found = _OVERRIDE.match(argument)
        if found and found.group(1) not in fields:
            raise UserError(unknown_field(found.group(1), fields))


def run_program(
    main_function: Callable[[Sequence[str]], int | None],
    *,
    words: int = 0,
    has_config: bool = False,
) -> None:
    """Runs the main function of a command through absl and ends the process with its exit status.

    A mistake or a failed read or write is one line on stderr; its status is `exit_status`.

    Args:
      main_function: is given the program's name and at most `words` arguments that are no flags.
      words: how many such arguments the command takes, such as a subcommand.
      has_config: whether the flags have --config, whose fields they may set.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)
        quiet_orbax()
        try:
            return main_function(argv)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return exit_status(error)

    package = __name__.partition(".")[0]
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):  # for --help
        if module.partition(".")[0] == package:  # all of these are of this command
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    parse = functools.partial(parse_plain_flags, words=words)
    run_main(guarded, flags_parser=parse_flags if has_config else parse)


def exit_status(error: UserError | OSError) -> int:
    """Returns 2 for a mistake, which the same command would repeat, and 1 for what may pass.

    A disk or a network that failed may work again when a launcher restarts the run.
    """
    if isinstance(error, TransientError):
        return 1
    mistakes = (UserError, FileNotFoundError, NotADirectoryError, IsADirectoryError,
                PermissionError, FileExistsError)  # fmt: skip
    return 2 if isinstance(error, mistakes) else 1


def parse_plain_flags(argv: Sequence[str], *, words: int = 0) -> list[str]:
    """Parses a command line without --config.

    A mistake ends the process with one line on stderr and exit status 2.

    Args:
      argv: the program's name and its arguments.
      words: how many arguments that are no flags are allowed.

    Returns:
      The program's name and the arguments that are no flags.
    """
    try:
        rest = flags.FLAGS(_with_home(argv))
    except (UserError, flags.Error) as error:
        _end(error)
    if len(rest) > 1 + words:
        _end(UserError(f"expected flags alone; found {' '.join(rest[1 + words :])!r}"))
    return rest


def _end(error: Exception) -> NoReturn:
    text = str(error).strip().splitlines()[0][:1000]
    if missing := re.search(r"Flag --(\w+) must have a value other than None", text):
        text = f"--{missing[1]} is missing"
    found = re.fullmatch(r"(flag .*): \('(.*)', '.*'\)", text)  # absl shows a tuple for booleans
    print(f"error: {found[1] + ': ' + found[2] if found else text}", file=sys.stderr)
    sys.exit(2)
