#!/usr/bin/env python3
"""Environments, checks and demos of every subproject: the reader of workspace.toml behind make.

Standard library only, because it runs before any environment exists. Every command that changes
something or takes time is echoed as it could be typed from the workspace root.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (the interpreter is whatever `python3` happens to be)
    sys.exit(
        "error: Python 3.11 or newer is required, this is {}.{} ({}); name another one: "
        "make PYTHON=python3.12 ...".format(*sys.version_info[:2], sys.executable)
    )

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONDA_TOOLS = ("mamba", "conda", "micromamba")
TOOLS = (*CONDA_TOOLS, "uv", "pip")
STAMP = ".pano-env"
BUILDING = "building"
GIB = 2**30
MINIMUM_DISK_GIB = 8
"""Free space that the first environment needs: 5 GiB installed, the rest for downloads."""

TEST_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
FIND_LINKS = ("PIP_FIND_LINKS", "UV_FIND_LINKS")
"""Never used with a hashed lock: local wheels have hashes that the lock does not list."""

TARGETS = {
    "env-<name>": "build one environment (up to date: nothing to do)",
    "envs": "build every environment whose project is here",
    "clean-env-<name>": "remove one environment",
    "demo, demo-<name>": "run the demo of every project, or of one; IMAGE=panorama.jpg uses yours",
    "test, test-<name>": "run all tests, or one project's; ARGS='-k seam' goes to pytest",
    "lint": "ruff check and ruff format --check",
    "type": "pyright on the src folder of every project",
    "bench-<name>": "run <project>/benchmarks/run.py; ARGS go to it",
    "doctor": "check this machine, the environments and the weights, and say what to do",
    "lock-<name>": "refresh requirements.txt and requirements.lock from pyproject.toml",
    "help": "this list",
}
SETTINGS = {
    "PYTHON=python3.12": "make new environments from this interpreter (3.11 or newer)",
    "PANO_ENV_TOOL=uv": f"force one of {', '.join(TOOLS)}",
    "LOCKED=0": "install the ranges of requirements.txt instead of the hashed lock (uv and pip)",
    "UV_TORCH_BACKEND=auto": "choose the torch build for your GPU driver (implies LOCKED=0)",
}

IMPORTABLE = """
import sys
from importlib.util import find_spec
for name in sys.argv[1:]:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed")
"""
PROBE = """
import json, torch
cuda = torch.cuda.is_available()
device = torch.cuda.get_device_properties(0) if cuda else None
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "gpu": device.name if device else None,
    "gpu_bytes": device.total_memory if device else 0,
}))
"""


REUSABLE = "\nimport sys; sys.exit(sys.version_info < (3, 11))"


class WorkspaceError(Exception):
    """A request that cannot be met; the message says what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Env:
    """One table of workspace.toml.

    Attributes:
        name: Name in `make env-<name>`.
        folder: Project folder, relative to the workspace root.
        smoke: Modules that must import once the environment is built.
        shared: Folder of the shared package, installed next to the project.
        extras: Extras of the project that the environment includes.
        python: Python version in the conda file; virtual environments use the running interpreter.
        venv: Virtual environment, relative to the folder.
        lock: Hashed lock file, relative to the folder.
        conda_file: Conda environment file, relative to the folder.
        conda_name: Name of the conda environment; empty means `name`.
        demo: Arguments of the demo's Python command, run in the folder; empty means no demo.
        demo_input: Flag of the demo that takes an image.
        weights: Official weights on the Hub, for `make doctor`.
    """

    name: str
    folder: str
    smoke: Sequence[str]
    shared: str = "shared_pano_utils"
    extras: Sequence[str] = ("dev",)
    python: str = "3.11"
    venv: str = ".venv"
    lock: str = "requirements.lock"
    conda_file: str = "environment.yml"
    conda_name: str = ""
    demo: Sequence[str] = ()
    demo_input: str = "--input"
    weights: Sequence[str] = ()

    @property
    def path(self) -> Path:
        """Absolute project folder."""
        return ROOT / self.folder

    @property
    def here(self) -> bool:
        """Whether the project is in this checkout, as opposed to planned."""
        return (self.path / "pyproject.toml").is_file() and (self.path / self.lock).is_file()

    @property
    def editables(self) -> list[str]:
        """Folders to install in editable mode, relative to the project folder."""
        shared = [] if self.folder == self.shared else [os.path.relpath(self.shared, self.folder)]
        return [*shared, "."]


def load(root: Path = ROOT) -> tuple[dict[str, Env], dict[str, str]]:
    """Read workspace.toml: the environments by name, and the `[workspace]` table."""
    document = tomllib.loads((root / "workspace.toml").read_text(encoding="utf-8"))
    settings = document["workspace"]
    tables = document["env"].items()
    return {
        name: Env(name=name, shared=settings["shared"], **table) for name, table in tables
    }, settings


ENVS, WORKSPACE = load()


def named(name: str) -> Env:
    """The environment called `name`, whether in this checkout or planned."""
    if name not in ENVS:
        raise WorkspaceError(f"no environment {name!r} in workspace.toml; it has {', '.join(ENVS)}")
    return ENVS[name]


def find(name: str) -> Env:
    """The environment called `name`, which must be in this checkout."""
    if not named(name).here:
        raise WorkspaceError(f"{name} is planned: {ENVS[name].folder}/ is not built yet")
    return ENVS[name]


def built_envs() -> list[Env]:
    """The environments whose project is in this checkout."""
    return [env for env in ENVS.values() if env.here]


def projects() -> list[Env]:
    """One environment for each project folder in this checkout: the first in workspace.toml."""
    first = {env.folder: env for env in reversed(built_envs())}
    return [env for env in built_envs() if first[env.folder] is env]


# ---- commands ------------------------------------------------------------------------------------


def run(
    command: Sequence[str],
    folder: Path = ROOT,
    variables: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> int:
    """Echo a command as it could be typed at the workspace root, run it, return its status."""
    variables = variables or {}
    without = [name for name in without if name in os.environ]
    place = "" if folder == ROOT else f"cd {shlex.quote(os.path.relpath(folder, ROOT))} && "
    changes = [*(f"-u {name}" for name in without), *(f"{k}={v}" for k, v in variables.items())]
    prefix = " ".join(["env", *changes, ""]) if without else "".join(f"{c} " for c in changes)
    print(f"+ {place}{prefix}{shlex.join(command)}", flush=True)
    environ = {k: v for k, v in os.environ.items() if k not in without}
    return subprocess.run(command, cwd=folder, env={**environ, **variables}).returncode


def check(command: Sequence[str], folder: Path = ROOT, **options) -> None:
    """Like `run`, but a status other than 0 is an error."""
    status = run(command, folder, **options)
    if status:
        raise WorkspaceError(f"{command[0]} ended with status {status} (command above)")


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether a command exists, ends within a minute and has status 0; its output is dropped."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def summarise(steps: Mapping[str, int]) -> int:
    """Print the status of steps that ran one after the other; 1 if any failed."""
    print()
    for name, status in steps.items():
        print(f"{name:<32} {'ok' if status == 0 else f'FAILED (status {status})'}")
    return int(any(steps.values()))


# ---- tools ---------------------------------------------------------------------------------------


def create_venv(folder: Path) -> None:
    """Make a virtual environment with pip from the running interpreter."""
    if run([sys.executable, "-m", "venv", "--clear", os.path.relpath(folder, ROOT)]):
        raise WorkspaceError(
            "python3 cannot make virtual environments; on Debian or Ubuntu: "
            "apt-get install python3-venv"
        )


@cache
def find_uv() -> str | None:
    """Path of uv, which is installed in .tools when it is missing; None if that fails."""
    private = ROOT / ".tools" / "bin" / "uv"
    for candidate in ("uv", str(private)):
        if succeeds([candidate, "--version"]):
            return candidate
    create_venv(ROOT / ".tools")
    run([".tools/bin/python", "-m", "pip", "install", "--quiet", "uv"])
    return str(private) if succeeds([private, "--version"]) else None


def select_tool() -> str:
    """The tool that makes environments: `PANO_ENV_TOOL`, else the first one that works.

    A program of the conda family counts only if `<tool> env --help` works: PyPI has an unrelated
    program called mamba.
    """
    forced = os.environ.get("PANO_ENV_TOOL", "")
    if forced and forced not in TOOLS:
        raise WorkspaceError(f"PANO_ENV_TOOL is {forced!r}; it must be one of {', '.join(TOOLS)}")
    for tool in [forced] if forced else TOOLS:
        if tool in CONDA_TOOLS and succeeds([tool, "env", "--help"]):
            return tool
        if tool == "pip" or (tool == "uv" and find_uv()):
            return tool
    raise WorkspaceError(f"PANO_ENV_TOOL is {forced!r}, but that program does not work here")


# ---- environments --------------------------------------------------------------------------------


def prefix_of(env: Env, tool: str) -> Path | None:
    """Folder of the environment: the virtual environment, or what conda calls its prefix."""
    if tool not in CONDA_TOOLS:
        return env.path / env.venv
    listing = subprocess.run([tool, "env", "list", "--json"], capture_output=True, text=True)
    prefixes = [Path(line) for line in json.loads(listing.stdout or "{}").get("envs", [])]
    name = env.conda_name or env.name
    return next((prefix for prefix in prefixes if prefix.name == name), None)


def python_of(env: Env, tool: str) -> str:
    """The environment's interpreter as seen from the project folder."""
    prefix = prefix_of(env, tool)
    if prefix is None:
        raise WorkspaceError(
            f"{tool} does not list the environment {env.name}; make env-{env.name}"
        )
    inside = prefix.is_relative_to(env.path)
    return str((prefix.relative_to(env.path) if inside else prefix) / "bin" / "python")


def read_stamp(prefix: Path) -> tuple[str, str]:
    """Flavour and digest that the last build recorded; empty if there is no record."""
    stamp = prefix / STAMP
    flavour, _, recorded = (
        stamp.read_text(encoding="utf-8").partition(" ") if stamp.is_file() else ("", "", "")
    )
    return flavour, recorded


def flavour_of(prefix: Path | None) -> str:
    """What uv and pip install: `locked`, `ranges`, or the ranges with that torch build of uv's.

    A choice holds until another one is made, so that `make test` keeps the torch build with which
    `make env-<name>` was called. A hashed lock cannot match another torch build.
    """
    if os.environ.get("UV_TORCH_BACKEND"):
        return os.environ["UV_TORCH_BACKEND"]
    if "LOCKED" in os.environ:
        return "ranges" if os.environ["LOCKED"] == "0" else "locked"
    return (read_stamp(prefix)[0] if prefix else "") or "locked"


def digest(env: Env) -> str:
    """Hash of everything that decides what the environment holds."""
    files = [env.path / name for name in (env.lock, "requirements.txt", env.conda_file)]
    files += [env.path / folder / "pyproject.toml" for folder in env.editables]
    text = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    return hashlib.sha256("\0".join([*env.extras, *text]).encode()).hexdigest()


def state(env: Env, tool: str) -> str:
    """One of `missing`, `broken`, `outdated` and `ready`."""
    prefix = prefix_of(env, tool)
    if prefix is None or not prefix.is_dir():
        return "missing"
    flavour, recorded = read_stamp(prefix)
    python = prefix / "bin" / "python"
    if recorded == BUILDING or not succeeds([python, "-c", IMPORTABLE, *env.smoke]):
        return "broken"
    current = (flavour, recorded) == (flavour_of(prefix), digest(env))
    return "ready" if current else "outdated"


def remove(prefix: Path) -> None:
    """Delete a virtual environment, or the link to one."""
    if prefix.is_symlink():
        prefix.unlink()
    elif prefix.exists():
        print(f"+ rm -rf {os.path.relpath(prefix, ROOT)}", flush=True)
        shutil.rmtree(prefix)


def build_venv(env: Env, tool: str, fresh: bool) -> None:
    """Make or update the virtual environment with uv or pip."""
    prefix = env.path / env.venv
    flavour = flavour_of(prefix)
    uv = find_uv() if tool == "uv" else None
    if tool == "uv" and uv is None:
        raise WorkspaceError("uv could not be installed; PANO_ENV_TOOL=pip does without it")
    usable = [prefix / "bin" / "python", "-c", REUSABLE if uv else f"import pip{REUSABLE}"]
    if fresh or read_stamp(prefix)[1] == BUILDING or not succeeds(usable):
        remove(prefix)
        if uv:
            target = os.path.relpath(prefix, ROOT)
            check([uv, "venv", "--quiet", "--python", sys.executable, target])
        else:
            create_venv(prefix)
    (prefix / STAMP).write_text(f"{flavour} {BUILDING}", encoding="utf-8")

    python = python_of(env, tool)
    pip = [uv, "pip"] if uv else [python, "-m", "pip"]
    target = ["--python", python] if uv else []
    variables = {"UV_COMPILE_BYTECODE": "1"} if uv else {}
    editables = [part for folder in env.editables for part in ("-e", folder)]
    if flavour == "locked":
        options = {"variables": variables, "without": FIND_LINKS}
        verb = "sync" if uv else "install"
        lock = [env.lock] if uv else ["-r", env.lock]
        check([*pip, verb, *target, "--require-hashes", *lock], env.path, **options)
        check([*pip, "install", *target, "--no-deps", *editables], env.path, **options)
        return
    if flavour != "ranges":
        variables["UV_TORCH_BACKEND"] = flavour
    editables[-1] = f".[{','.join(env.extras)}]"
    wanted = ["-r", "requirements.txt", *editables]
    check([*pip, "install", *target, *wanted], env.path, variables=variables)


def build_conda(env: Env, tool: str, fresh: bool) -> None:
    """Make or update the conda environment from the project's environment file."""
    name = env.conda_name or env.name
    if fresh:
        run([tool, "env", "remove", "--name", name, "--yes"])
    source = ["--name", name, "--file", env.conda_file]
    if tool == "micromamba":
        check([tool, "create", "--yes", *source], env.path)
    else:
        check([tool, "env", "update", *source, "--prune"], env.path)


def ensure(env: Env) -> str:
    """Build or update the environment if needed; return its interpreter as `python_of` does."""
    tool = select_tool()
    before = state(env, tool)
    if before == "ready":
        return python_of(env, tool)
    print(f"{env.name}: {before}, building it with {tool}", flush=True)
    build = build_conda if tool in CONDA_TOOLS else build_venv
    for fresh in (False, True):
        build(env, tool, fresh)
        python = python_of(env, tool)
        if run([python, "-c", f"import {', '.join(env.smoke)}"], env.path) == 0:
            break
    else:
        raise WorkspaceError(f"{env.name} is installed, but does not import (message above)")
    prefix = prefix_of(env, tool) or env.path / env.venv
    (prefix / STAMP).write_text(f"{flavour_of(prefix)} {digest(env)}", encoding="utf-8")
    return python


# ---- checks of this machine ----------------------------------------------------------------------


def hub_cache() -> Path:
    """Folder of the local Hub cache, by the rules of huggingface_hub."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def has_weights(repository: str) -> bool:
    """Whether the cache holds a complete weight file of a Hub repository."""
    snapshots = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    return any(file.exists() for file in snapshots.glob("*/**/*.safetensors"))


def diagnose_machine(env_missing: bool) -> list[tuple[str, str]]:
    """Findings about programs, disk and memory, as pairs of level and text."""
    findings = [("ok", "Python {}.{}.{}".format(*sys.version_info[:3]) + f" ({sys.executable})")]
    if not shutil.which("git"):
        findings.append(("warn", "git is missing; runs will not record their commit: install git"))
    free = shutil.disk_usage(ROOT).free / GIB
    enough = free >= MINIMUM_DISK_GIB or not env_missing
    advice = "" if enough else f"; an environment needs {MINIMUM_DISK_GIB}: free some space"
    findings.append(("ok" if enough else "MISSING", f"disk: {free:.0f} GiB free{advice}"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    low = "" if memory >= 8 else "; tests need 8: close other programs, or expect swapping"
    findings.append(("warn" if low else "ok", f"memory: {memory:.0f} GiB{low}"))
    return findings


def diagnose_torch(env: Env, tool: str) -> list[tuple[str, str]]:
    """Findings about the torch build of an environment and the GPU it sees."""
    python = env.path / python_of(env, tool)
    probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    if probe.returncode:
        reason = probe.stderr.strip().rpartition("\n")[2]
        rebuild = f"make clean-env-{env.name} env-{env.name}"
        return [("MISSING", f"{env.name}: torch does not import ({reason}): {rebuild}")]
    found = json.loads(probe.stdout)
    build = f"torch {found['torch']} (CUDA {found['cuda']})" if found["cuda"] else "torch for CPU"
    if found["gpu"]:
        return [("ok", f"{env.name}: {build}, {found['gpu']}, {found['gpu_bytes'] / GIB:.0f} GiB")]
    if shutil.which("nvidia-smi"):
        advice = f"older driver? UV_TORCH_BACKEND=auto make env-{env.name}"
        return [("warn", f"{env.name}: {build} does not see the NVIDIA GPU; {advice}")]
    return [("ok", f"{env.name}: {build}, no GPU: --tiny and the demos run on the CPU")]


def doctor(_: argparse.Namespace) -> int:
    """Check the machine, the environments and the weights; 1 if something required is missing."""
    tool = select_tool()
    states = {env: state(env, tool) for env in built_envs()}
    findings = diagnose_machine("missing" in states.values())
    findings.append(("ok", f"environments are made with {tool}"))
    for env, current in states.items():
        if current in ("ready", "outdated"):
            findings += diagnose_torch(env, tool)
        if current == "outdated":
            findings.append(("warn", f"{env.name}: its lock has changed: make env-{env.name}"))
        elif current != "ready":
            findings.append(("MISSING", f"{env.name}: environment {current}: make env-{env.name}"))
    for env in states:
        for repository in env.weights:
            hf = os.path.relpath(env.path / env.venv / "bin" / "hf", ROOT)
            command = f"{'hf' if tool in CONDA_TOOLS else hf} download {repository}"
            cached = has_weights(repository)
            advice = "" if cached else f" not downloaded (optional, --tiny needs none): {command}"
            findings.append(("ok" if cached else "warn", f"weights {repository}{advice}"))
    for level, text in findings:
        print(f"{level:<8} {text}")
    return int(any(level == "MISSING" for level, _ in findings))


# ---- requests of make ----------------------------------------------------------------------------


def show_help(_: argparse.Namespace) -> int:
    """List targets, settings and environments."""
    print("Usage: make <target> [setting=value]\n\nTargets")
    for name, text in TARGETS.items():
        print(f"  {name:<24} {text}")
    print("\nSettings")
    for name, text in SETTINGS.items():
        print(f"  {name:<24} {text}")
    print("\nEnvironments")
    for env in ENVS.values():
        print(f"  env-{env.name:<24} {env.folder + '/' if env.here else 'planned'}")
    return 0


def make_env(arguments: argparse.Namespace) -> int:
    """Build one environment, or all of them."""
    for env in [find(arguments.name)] if arguments.name else built_envs():
        python = ensure(env)
        print(f"{env.name}: up to date ({os.path.relpath(env.path / python, ROOT)})")
    return 0


def clean_env(arguments: argparse.Namespace) -> int:
    """Remove one environment."""
    env, tool = find(arguments.name), select_tool()
    if tool in CONDA_TOOLS and prefix_of(env, tool):
        check([tool, "env", "remove", "--name", env.conda_name or env.name, "--yes"])
    remove(env.path / env.venv)
    return 0


def extra_arguments() -> list[str]:
    """The words of `make ... ARGS='...'`."""
    return shlex.split(os.environ.get("ARGS", ""))


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo of one project, or of all that have one."""
    image = Path(os.environ.get("IMAGE", "")).expanduser().resolve()
    given = bool(os.environ.get("IMAGE"))
    if given and not image.is_file():
        raise WorkspaceError(f"IMAGE={os.environ['IMAGE']} is not a file ({image})")
    chosen = [find(arguments.name)] if arguments.name else [e for e in built_envs() if e.demo]
    steps = {}
    for env in chosen:
        if not env.demo:
            raise WorkspaceError(f"{env.name} has no demo in workspace.toml")
        extra = [env.demo_input, str(image)] if given else []
        command = [ensure(env), *env.demo, *extra, *extra_arguments()]
        steps[f"demo-{env.name}"] = run(command, env.path)
    return next((status for status in steps.values() if status), 0)


def test(arguments: argparse.Namespace) -> int:
    """Run the tests of one project, or those of the workspace and of every project."""
    chosen = [find(arguments.name)] if arguments.name else projects()
    steps = {}
    pytest = ["-m", "pytest", *extra_arguments()]
    if not arguments.name:
        tools = find(WORKSPACE["tools"])
        python = os.path.relpath(tools.path / ensure(tools), ROOT)
        steps["test .ci"] = run([python, *pytest, ".ci/tests"], variables=TEST_VARIABLES)
    for env in chosen:
        status = run([ensure(env), *pytest], env.path, TEST_VARIABLES)
        steps[f"test {env.name}"] = status
    return summarise(steps)


def lint(_: argparse.Namespace) -> int:
    """Check style and layout of every Python file."""
    tools = find(WORKSPACE["tools"])
    ruff = [os.path.relpath(tools.path / ensure(tools), ROOT), "-m", "ruff"]
    return summarise(
        {
            "ruff check": run([*ruff, "check", "."]),
            "ruff format --check": run([*ruff, "format", "--check", "."]),
        }
    )


def check_types(_: argparse.Namespace) -> int:
    """Run pyright on every project's sources, each with the project's own environment."""
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    steps = {}
    for env in projects():
        python = ensure(env)
        command = [python, "-m", "pyright", "--pythonpath", python]
        steps[f"pyright {env.name}"] = run(command, env.path, quiet)
    return summarise(steps)


def bench(arguments: argparse.Namespace) -> int:
    """Run the benchmarks of one project."""
    env = find(arguments.name)
    if not (env.path / "benchmarks" / "run.py").is_file():
        raise WorkspaceError(f"{env.name} has no benchmarks: {env.folder}/benchmarks/run.py")
    return run([ensure(env), "benchmarks/run.py", *extra_arguments()], env.path)


def requirements_text(env: Env) -> str:
    """Content of requirements.txt: the project's dependencies but the shared package."""
    project = tomllib.loads((env.path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shared = Path(env.shared).name.replace("_", "-")
    lines = [line for line in project["dependencies"] if re.split(r"[^\w.-]", line)[0] != shared]
    head = f"# Generated from pyproject.toml by `make lock-{env.name}`; edit that file instead."
    return "\n".join([head, *lines, ""])


def write_requirements(arguments: argparse.Namespace) -> int:
    """Write requirements.txt of one project, or of all."""
    for env in [named(arguments.name)] if arguments.name else projects():
        (env.path / "requirements.txt").write_text(requirements_text(env), encoding="utf-8")
        print(f"wrote {env.folder}/requirements.txt")
    return 0


def lock(arguments: argparse.Namespace) -> int:
    """Resolve the project's ranges anew and write its requirements.txt and lock file."""
    env = named(arguments.name)
    write_requirements(arguments)
    uv = find_uv()
    if uv is None:
        raise WorkspaceError(
            "lock files are made by uv, which could not be installed: pip install uv"
        )
    command = [uv, "pip", "compile", "pyproject.toml", "--quiet", "--upgrade", "--universal"]
    command += [part for extra in env.extras for part in ("--extra", extra)]
    command += ["--python-version", env.python, "--constraints", "../constraints.txt"]
    command += ["--no-emit-index-url", "--generate-hashes"]
    command += ["--no-emit-package", Path(env.shared).name.replace("_", "-")]
    command += ["--custom-compile-command", f"make lock-{env.name}", "--output-file", env.lock]
    return run(command, env.path, without=FIND_LINKS)


REQUESTS = {
    "help": show_help,
    "env": make_env,
    "envs": make_env,
    "clean-env": clean_env,
    "demo": demo,
    "test": test,
    "lint": lint,
    "type": check_types,
    "bench": bench,
    "doctor": doctor,
    "requirements": write_requirements,
    "lock": lock,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one request of make."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", choices=REQUESTS, help="what make was asked for")
    parser.add_argument("name", nargs="?", help="environment, as in workspace.toml")
    arguments = parser.parse_args(argv)
    if arguments.request in ("env", "clean-env", "bench", "lock") and not arguments.name:
        parser.error(f"{arguments.request} needs the name of an environment")
    try:
        return REQUESTS[arguments.request](arguments)
    except WorkspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
