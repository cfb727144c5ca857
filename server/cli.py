"""The command line: `multiflora serve`, `doctor`, `version` and those in ``commands/``."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import multiflora
from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.engine.config import Device, Kernels
from multiflora.engine.errors import EngineError, StartupError

from .commands import bench, estimate, export, extract, keys, merge, sample, soup, train
from .rate_limit import RateLimits
from .settings import ServeSettings
from .settings_source import PREFIX, convert, read_settings

EXIT_STARTUP: Final = 1
EXIT_USAGE: Final = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. A user's mistake is one line on stderr, never a traceback."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    run = options.pop("run", None)
    if run is not None:
        sys.exit(_run(run, options))
    if command == "version":
        print(f"multiflora {multiflora.__version__}")
        return
    sys.exit(_examine(**options) if command == "doctor" else _serve(options))


def _run(command: Callable[..., int], options: dict[str, Any]) -> int:
    try:
        return command(**options)
    except (EngineError, AdapterRejected, RegistryError, OSError) as error:
        return _complain(error, EXIT_STARTUP)
    except ValueError as error:
        return _complain(error, EXIT_USAGE)
    except KeyboardInterrupt:
        return 130


def _examine(*, device: str, kernels: str, build: bool) -> int:
    # Imported late: it loads torch, which no other command of this process needs.
    from multiflora.engine.doctor import examine

    has_problem = False
    for finding in examine(device=device, kernels=kernels, build_core=build):
        print(finding.render(), flush=True)
        has_problem |= finding.is_problem
    return EXIT_STARTUP if has_problem else 0


def _serve(options: dict[str, Any]) -> int:
    try:
        settings = _settings(options)
    except ValueError as error:
        return _complain(error, EXIT_USAGE)
    # Imported late: usage errors and --help answer before the server is loaded.
    from .serve import serve

    try:
        return serve(settings)
    except (StartupError, AdapterRejected) as error:
        return _complain(error, EXIT_STARTUP)
    except ValueError as error:
        return _complain(error, EXIT_USAGE)
    except KeyboardInterrupt:
        return 130


def _settings(options: dict[str, Any]) -> ServeSettings:
    config = options.pop("config", None)
    flags = {name: convert(name, value, source=_flag(name)) for name, value in options.items()}
    return read_settings(flags, os.environ, config=config)


def _complain(error: Exception, code: int) -> int:
    print(f"multiflora: error: {error}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with the nearest flag where there is one."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"multiflora: error: {message}{self._hint(message)}\n")

    def _hint(self, message: str) -> str:
        if not message.startswith("unrecognized arguments: --"):
            return f"; see {self.prog} --help"
        given = message.split()[2].partition("=")[0]
        known = [flag for action in _actions(self) for flag in action.option_strings]
        near = difflib.get_close_matches(given, known, n=1)
        return f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    nested = [
        inner
        for action in parser._actions
        if isinstance(action.choices, dict)
        for choice in action.choices.values()
        for inner in choice._actions
    ]
    return [*parser._actions, *nested]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="multiflora", description=multiflora.__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("version", help="print the version", allow_abbrev=False)
    doctor = commands.add_parser(
        "doctor",
        help="print device, versions, the kernels' self-check and what would be chosen",
        allow_abbrev=False,
    )
    doctor.add_argument("--device", choices=get_args(Device), default="auto")
    doctor.add_argument("--kernels", choices=get_args(Kernels), default="auto")
    doctor.add_argument("--build", action="store_true", help="compile the core for CPUs first")
    export.add_to(commands)
    extract.add_to(commands)
    soup.add_to(commands)
    merge.add_to(commands)
    train.add_to(commands)
    sample.add_to(commands)
    estimate.add_to(commands)
    keys.add_to(commands)
    bench.add_to(commands)
    serve = commands.add_parser(
        "serve",
        help="serve a base and its adapters over HTTP",
        epilog=f"Flags win over {PREFIX}<NAME> variables, these over --config, that over defaults.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings as .yaml or .toml")
    for setting in fields(ServeSettings):
        _add_setting(serve, setting)
    return parser


def _add_setting(parser: argparse.ArgumentParser, setting: "Field[Any]") -> None:
    about = setting.metadata["help"]
    metavar = setting.metadata["metavar"] or setting.name.rpartition("_")[2].upper()
    if setting.name == "model":
        parser.add_argument("model", nargs="?", metavar="MODEL", help=about)
    elif setting.name == "adapters":
        _add_adapters(parser, about, metavar)
    elif setting.type in (bool, "bool"):
        parser.add_argument(_flag(setting.name), action=argparse.BooleanOptionalAction, help=about)
    else:
        parser.add_argument(_flag(setting.name), metavar=metavar, help=_with_default(setting))


def _add_adapters(parser: argparse.ArgumentParser, about: str, metavar: str) -> None:
    parser.add_argument("--adapter", action="append", dest="adapters", metavar=metavar, help=about)
    parser.add_argument(
        "--lora-modules",
        action="extend",
        nargs="+",
        dest="adapters",
        metavar=metavar,
        help="several adapters at once, as vLLM spells it",
    )


def _with_default(setting: "Field[Any]") -> str:
    about = setting.metadata["help"].replace("%", "%%")
    default = ",".join(setting.default) if isinstance(setting.default, tuple) else setting.default
    has_default = default is not MISSING and default not in (None, "", RateLimits())
    return f"{about} (default: {default})" if has_default else about


def _flag(name: str) -> str:
    return "--adapter" if name == "adapters" else f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    main()
