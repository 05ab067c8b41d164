import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
workspace = runpy.run_path(str(ROOT / "workspace.py"))
PROJECTS = [env for env in workspace["ENVS"].values() if env.here]
IDS = [env.name for env in PROJECTS]

TOY_TOML = """
[workspace]
shared = "shared"
tools = "toy"

[env.toy]
folder = "toy"
smoke = ["json"]
demo = ["demo.py", "--out", "x"]
weights = ["someone/some-model"]

[env.later]
folder = "later"
smoke = ["later"]
"""
TOY_PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "{name}"
version = "1"
dependencies = {dependencies}

[project.optional-dependencies]
dev = []
"""
# A build back end without dependencies, so that pip installs the toys without a network.
TOY_BACKEND = """
import zipfile
from pathlib import Path

NAME = Path(__file__).parent.name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    wheel = f"{NAME}-1-py3-none-any.whl"
    info = f"{NAME}-1.dist-info"
    with zipfile.ZipFile(Path(wheel_directory) / wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {NAME}\\nVersion: 1\\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel
"""
# Records how it was called; `venv` makes an environment whose Python is the running one.
UV_STUB = """
case "$*" in
  "--version") exit 0 ;;
  venv*) for last; do :; done
    mkdir -p "$last/bin"
    printf '#!/bin/sh\\nexec {python} "$@"\\n' > "$last/bin/python"
    chmod +x "$last/bin/python" ;;
esac
echo "uv $* [$(basename "$PWD")] find=$PIP_FIND_LINKS$UV_FIND_LINKS extra=$PIP_EXTRA_INDEX_URL \
compile=$UV_COMPILE_BYTECODE backend=$UV_TORCH_BACKEND" >> "$STUB_LOG"
"""
CONDA_STUB = """
case "$*" in
  "env --help") exit 0 ;;
  "env list --json") echo '{{"envs": ["/nowhere/base", "{prefix}"]}}'; exit 0 ;;
esac
echo "$(basename "$0") $* [$(basename "$PWD")]" >> "$STUB_LOG"
"""
PYPI_MAMBA_STUB = "echo 'mamba: no such spec env' >&2; exit 2"


class Toy:
    """A workspace of one small project, on a PATH that holds nothing but the stubs of a test."""

    def __init__(self, root: Path):
        self.root = root / "ws"
        self.bin = root / "bin"
        self.log = root / "stubs.log"
        self.env = {
            "PATH": str(self.bin),
            "HOME": str(root / "home"),
            "STUB_LOG": str(self.log),
            "PIP_NO_INDEX": "1",
        }
        self.bin.mkdir(parents=True)
        for program in (
            "sh",
            "make",
            "env",
            "mkdir",
            "chmod",
            "basename",
            "bash",
            "dirname",
            "cat",
        ):
            (self.bin / program).symlink_to(shutil.which(program))
        self.add_stub("python3", f'exec {sys.executable} "$@"')
        self.root.mkdir()
        for name in ("workspace.py", "Makefile"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "workspace.toml").write_text(TOY_TOML)
        for name, dependencies in {"shared": [], "toy": ["shared", "six>=1"]}.items():
            folder = self.root / name
            folder.mkdir()
            project = TOY_PROJECT.format(name=name, dependencies=json.dumps(dependencies))
            (folder / "pyproject.toml").write_text(project)
            (folder / "backend.py").write_text(TOY_BACKEND)
            (folder / "requirements.lock").write_text("# nothing\n")
            (folder / "requirements.txt").write_text("# nothing\n")

    def add_stub(self, name: str, body: str) -> None:
        """Put a shell script on the PATH."""
        stub = self.bin / name
        stub.write_text(f"#!/bin/sh\n{body}\n")
        stub.chmod(0o755)

    def add_uv(self) -> None:
        """Put the recording uv on the PATH."""
        self.add_stub("uv", UV_STUB.format(python=sys.executable))

    def add_conda(self, name: str) -> Path:
        """Put a recording conda on the PATH; return the prefix it lists for `toy`."""
        prefix = self.root.parent / "conda" / "toy"
        (prefix / "bin").mkdir(parents=True)
        (prefix / "bin" / "python").symlink_to(sys.executable)
        self.add_stub(name, CONDA_STUB.format(prefix=prefix))
        return prefix

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Run make; the stubs' calls of this run alone are in `calls`."""
        self.log.write_text("")
        return subprocess.run(
            ["make", *arguments],
            cwd=self.root,
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.fixture
def toy_uv(toy):
    toy.add_uv()
    return toy


# ---- make help, names ----------------------------------------------------------------------------


def test_workspace_names():
    assert list(workspace["ENVS"]) == [
        "shared",
        "pager",
        "genex_explorer",
        "dit360",
        "se360",
        "se360-data",
        "se360-data-grounded-sam",
        "panoenv",
    ]


def test_help_is_the_default_and_lists_targets_and_environments():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+(?:%|\b))(?=.*:)", (ROOT / "Makefile").read_text(), re.M)
    assert "env-%" in targets
    for target in targets:
        assert target.replace("%", "<name>") in shown
    for env in workspace["ENVS"].values():
        place = f"{env.folder}/" if env.here else "planned"
        assert re.search(rf"^  env-{env.name} +{place}$", shown, re.M)


def test_planned_environment_says_so_in_one_line(toy):
    done = toy.make("env-later")
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first == "error: later is planned: later/ is not built yet"
    assert all(line.startswith("make: ***") for line in rest)


def test_unknown_environment_lists_the_known(toy):
    done = toy.make("env-tony")
    assert done.returncode != 0
    assert "no environment 'tony' in workspace.toml; it has toy, later" in done.stderr


def test_old_python_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is required, this is 3\.9"):
        runpy.run_path(str(ROOT / "workspace.py"))


# ---- selection of the tool -----------------------------------------------------------------------


def test_mamba_that_is_not_mamba_is_passed_over(toy_uv):
    toy_uv.add_stub("mamba", PYPI_MAMBA_STUB)
    done = toy_uv.make("env-toy")
    assert done.returncode == 0, done.stderr
    assert "building it with uv" in done.stdout
    assert toy_uv.calls[0].startswith("uv venv")


def test_first_working_conda_wins_over_uv(toy_uv):
    toy_uv.add_stub("mamba", PYPI_MAMBA_STUB)
    prefix = toy_uv.add_conda("conda")
    done = toy_uv.make("env-toy")
    assert done.returncode == 0, done.stderr
    assert toy_uv.calls == ["conda env update --name toy --file environment.yml --prune [toy]"]
    assert str(prefix / "bin" / "python") in done.stdout
    assert toy_uv.make("env-toy").returncode == 0
    assert toy_uv.calls == []


def test_micromamba_creates(toy):
    toy.add_conda("micromamba")
    assert toy.make("env-toy").returncode == 0
    assert toy.calls == ["micromamba create --yes --name toy --file environment.yml [toy]"]
    assert toy.make("clean-env-toy").returncode == 0
    assert toy.calls == ["micromamba env remove --name toy --yes [ws]"]


def test_forced_tool_wins(toy_uv):
    toy_uv.add_conda("conda")
    assert "building it with uv" in toy_uv.make("env-toy", PANO_ENV_TOOL="uv").stdout


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (
            "poetry",
            "PANO_ENV_TOOL is 'poetry'; it must be one of mamba, conda, micromamba, uv, pip",
        ),
        ("conda", "PANO_ENV_TOOL is 'conda', but that program does not work here"),
    ],
)
def test_forced_tool_that_cannot_work(toy_uv, tool, message):
    done = toy_uv.make("env-toy", PANO_ENV_TOOL=tool)
    assert done.returncode != 0
    assert message in done.stderr


def test_nothing_on_path_and_no_uv_to_install_ends_with_pip(toy):
    done = toy.make("env-toy")
    assert done.returncode == 0, done.stderr
    assert "pip install --quiet uv" in done.stdout
    assert "building it with pip" in done.stdout
    python = toy.root / "toy" / ".venv" / "bin" / "python"
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
    assert re.search(rf"^toy +1 +{toy.root}/toy$", listed, re.M)
    assert re.search(rf"^shared +1 +{toy.root}/shared$", listed, re.M)


# ---- building with uv ----------------------------------------------------------------------------


def test_locked_build_ignores_local_wheels_and_keeps_the_index(toy_uv):
    done = toy_uv.make(
        "env-toy", PIP_FIND_LINKS="/wheels", UV_FIND_LINKS="/w", PIP_EXTRA_INDEX_URL="e"
    )
    assert done.returncode == 0, done.stderr
    tail = "[toy] find= extra=e compile=1 backend="
    assert toy_uv.calls[1:] == [
        f"uv pip sync --python .venv/bin/python --require-hashes requirements.lock {tail}",
        f"uv pip install --python .venv/bin/python --no-deps -e ../shared -e . {tail}",
    ]
    assert (
        "+ cd toy && env -u PIP_FIND_LINKS -u UV_FIND_LINKS UV_COMPILE_BYTECODE=1 "
        "uv pip sync --python .venv/bin/python --require-hashes requirements.lock"
    ) in done.stdout.splitlines()


def test_second_build_does_nothing_until_an_input_changes(toy_uv):
    assert toy_uv.make("env-toy").returncode == 0
    done = toy_uv.make("env-toy")
    assert done.returncode == 0
    assert toy_uv.calls == []
    assert done.stdout == "toy: up to date (toy/.venv/bin/python)\n"
    (toy_uv.root / "toy" / "requirements.lock").write_text("# something\n")
    assert toy_uv.make("env-toy").returncode == 0
    assert [call.split()[2] for call in toy_uv.calls] == ["sync", "install"]


@pytest.mark.parametrize("damage", ["interrupted", "dead python"])
def test_damaged_environment_is_made_anew(toy_uv, damage):
    assert toy_uv.make("env-toy").returncode == 0
    venv = toy_uv.root / "toy" / ".venv"
    leftover = venv / "leftover"
    leftover.touch()
    if damage == "interrupted":
        (venv / ".pano-env").write_text("locked building")
    else:
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to("/nowhere/python3")
    done = toy_uv.make("env-toy")
    assert done.returncode == 0, done.stderr
    assert "+ rm -rf toy/.venv" in done.stdout
    assert toy_uv.calls[0].startswith("uv venv")
    assert not leftover.exists()


def test_failed_install_is_reported_and_not_taken_for_ready(toy_uv):
    toy_uv.add_stub("uv", f'case "$*" in *sync*) exit 7 ;; esac{UV_STUB}'.replace("{python}", "x"))
    done = toy_uv.make("env-toy")
    assert done.returncode != 0
    assert "error: uv ended with status 7" in done.stderr
    assert toy_uv.make("env-toy").returncode != 0


def test_environment_that_does_not_import_is_an_error(toy_uv):
    text = TOY_TOML.replace('["json"]', '["not_a_module"]')
    (toy_uv.root / "workspace.toml").write_text(text)
    done = toy_uv.make("env-toy")
    assert done.returncode != 0
    assert "error: toy is installed, but does not import" in done.stderr


def test_chosen_torch_build_is_kept_by_later_targets(toy_uv):
    assert toy_uv.make("env-toy", UV_TORCH_BACKEND="cu126").returncode == 0
    wanted = "-r requirements.txt -e ../shared -e .[dev] [toy]"
    assert wanted in toy_uv.calls[-1]
    assert toy_uv.calls[-1].endswith("backend=cu126")
    assert toy_uv.make("env-toy").returncode == 0
    assert toy_uv.calls == []
    (toy_uv.root / "toy" / "requirements.lock").write_text("# newer\n")
    assert toy_uv.make("env-toy").returncode == 0
    assert toy_uv.calls[-1].endswith("backend=cu126")
    assert toy_uv.make("env-toy", LOCKED="1").returncode == 0
    assert "--require-hashes" in toy_uv.calls[0]


def test_clean_removes_only_the_environment(toy_uv):
    assert toy_uv.make("env-toy").returncode == 0
    assert toy_uv.make("clean-env-toy").returncode == 0
    assert not (toy_uv.root / "toy" / ".venv").exists()
    assert (toy_uv.root / "toy" / "pyproject.toml").exists()


# ---- demo, test, bench ---------------------------------------------------------------------------


def test_demo_passes_the_image_as_an_absolute_path(toy_uv):
    (toy_uv.root / "toy" / "demo.py").write_text("import sys; print(sys.argv[1:])\n")
    (toy_uv.root / "my pano.jpg").touch()
    done = toy_uv.make("demo", "IMAGE=my pano.jpg")
    assert done.returncode == 0, done.stderr
    image = str(toy_uv.root / "my pano.jpg")
    assert str(["--out", "x", "--input", image]) in done.stdout
    assert str(["--out", "x"]) in toy_uv.make("demo-toy").stdout
    done = toy_uv.make("demo", "IMAGE=other.jpg")
    assert done.returncode != 0
    assert "IMAGE=other.jpg is not a file" in done.stderr


def test_failing_demo_fails_make(toy_uv):
    (toy_uv.root / "toy" / "demo.py").write_text("raise SystemExit(3)\n")
    assert toy_uv.make("demo").returncode != 0


@pytest.mark.parametrize("outcome", ["True", "False"])
def test_make_test_runs_everything_and_reports(toy_uv, outcome):
    tests = toy_uv.root / ".ci" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_ci.py").write_text(f"def test_it():\n    assert {outcome}\n")
    (toy_uv.root / "toy" / "test_toy.py").write_text(
        "import os\n\n\ndef test_it():\n    assert os.environ['OMP_NUM_THREADS'] == '1'\n"
        "    assert os.environ['HF_HUB_OFFLINE'] == '1'\n"
    )
    done = toy_uv.make("test", HOME=os.environ.get("HOME", "/"))
    passed = outcome == "True"
    assert (done.returncode == 0) is passed, done.stdout + done.stderr
    assert re.search(rf"^test \.ci +{'ok' if passed else 'FAILED .status 1.'}$", done.stdout, re.M)
    assert re.search(r"^test toy +ok$", done.stdout, re.M)
    assert done.stdout.count("1 passed") == 1 + passed


def test_bench_without_a_benchmark_says_what_is_missing(toy_uv):
    done = toy_uv.make("bench-toy")
    assert done.returncode != 0
    assert "toy has no benchmarks: toy/benchmarks/run.py" in done.stderr


# ---- doctor --------------------------------------------------------------------------------------


TORCH_STUB = """
from types import SimpleNamespace

__version__ = "9.9"
version = SimpleNamespace(cuda={cuda})
device = SimpleNamespace(name="Toy GPU", total_memory=8 * 2**30)
cuda = SimpleNamespace(
    is_available=lambda: version.cuda is not None, get_device_properties=lambda _: device
)
"""


def add_torch(toy, cuda):
    modules = toy.root.parent / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text(TORCH_STUB.format(cuda=cuda))
    toy.env["PYTHONPATH"] = str(modules)


def test_doctor_asks_for_the_missing_environment(toy_uv):
    done = toy_uv.make("doctor")
    assert done.returncode != 0
    assert re.search(r"^MISSING  toy: environment missing: make env-toy$", done.stdout, re.M)
    assert toy_uv.calls == []


@pytest.mark.parametrize(
    ("cuda", "line"),
    [
        ("None", r"ok       toy: torch for CPU, no GPU.*"),
        ("'13.0'", r"ok       toy: torch 9\.9 \(CUDA 13\.0\), Toy GPU, 8 GiB"),
    ],
)
def test_doctor_is_content_without_weights_and_gpu(toy_uv, cuda, line):
    add_torch(toy_uv, cuda)
    assert toy_uv.make("env-toy").returncode == 0
    done = toy_uv.make("doctor")
    assert done.returncode == 0, done.stdout
    assert re.search(rf"^{line}$", done.stdout, re.M)
    assert re.search(
        r"^warn     weights someone/some-model not downloaded .*: toy/.venv/bin/hf download someone/some-model$",
        done.stdout,
        re.M,
    )


def test_doctor_finds_cached_weights(toy_uv):
    add_torch(toy_uv, "None")
    assert toy_uv.make("env-toy").returncode == 0
    cache = toy_uv.root / "cache"
    snapshot = cache / "models--someone--some-model" / "snapshots" / "abc" / "unet"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("/nowhere/unfinished")
    assert "some-model not downloaded" in toy_uv.make("doctor", HF_HUB_CACHE=str(cache)).stdout
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").touch()
    assert "ok       weights someone/some-model\n" in (
        toy_uv.make("doctor", HF_HUB_CACHE=str(cache)).stdout
    )


def test_doctor_reports_torch_that_does_not_import(toy_uv):
    assert toy_uv.make("env-toy").returncode == 0
    modules = toy_uv.root.parent / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')\n")
    done = toy_uv.make("doctor", PYTHONPATH=str(modules))
    assert done.returncode != 0
    assert re.search(r"^MISSING  toy: torch does not import \(.*libcudart", done.stdout, re.M)


# ---- .ci/run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 2])
def test_ci_run_ends_as_make_does(toy, status):
    (toy.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", toy.root / ".ci")
    for name in ("git", "chromium"):
        toy.add_stub(name, "exit 0")
    toy.add_stub("find", "echo font.ttf")
    toy.add_stub("grep", "exit 0")
    (toy.bin / "make").unlink()
    toy.add_stub("make", f'echo "make $*"; exit {status}')
    done = subprocess.run(
        [toy.bin / "bash", toy.root / ".ci" / "run"],
        cwd=toy.root.parent,
        env=toy.env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "make --keep-going lint type test"
    assert done.returncode == status, done.stderr


# ---- files of every project in this checkout -----------------------------------------------------


def read_project(env):
    return tomllib.loads((env.path / "pyproject.toml").read_text())["project"]


def read_lock(env):
    """Pins of a lock file: canonical name -> set of versions (several where markers differ)."""
    pins = {}
    for line in (env.path / env.lock).read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line):
            pins.setdefault(canonicalize_name(match[1]), set()).add(match[2])
    return pins


@pytest.mark.parametrize("env", PROJECTS, ids=IDS)
def test_requirements_are_those_of_pyproject(env):
    written = (env.path / "requirements.txt").read_text()
    assert written == workspace["requirements_text"](env)
    lines = [line for line in written.splitlines() if not line.startswith("#")]
    declared = read_project(env)["dependencies"]
    assert lines == [line for line in declared if line != "shared-pano-utils"]


@pytest.mark.parametrize("env", PROJECTS, ids=IDS)
def test_lock_is_hashed_and_without_addresses(env):
    text = (env.path / env.lock).read_text()
    assert "://" not in text
    assert "shared-pano-utils==" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    for entry in re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", text, flags=re.M).strip()):
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "+cpu" not in text


@pytest.mark.parametrize("env", PROJECTS, ids=IDS)
def test_lock_satisfies_pyproject_and_constraints(env):
    pins = read_lock(env)
    project = read_project(env)
    declared = list(project["dependencies"])
    for extra in env.extras:
        declared += project["optional-dependencies"][extra]
    constraints = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        assert name == "shared-pano-utils" or name in pins, f"{name} is not locked"
    for requirement in map(Requirement, [*declared, *constraints]):
        for version in pins.get(canonicalize_name(requirement.name), ()):
            assert requirement.specifier.contains(version), f"{version} is not {requirement}"


def test_locks_agree_with_each_other():
    seen = {}
    for env in PROJECTS:
        for name, versions in read_lock(env).items():
            assert seen.setdefault(name, versions) == versions, f"{name} differs in {env.name}"


@pytest.mark.parametrize("env", PROJECTS, ids=IDS)
def test_conda_file_installs_what_the_lock_path_installs(env):
    document = yaml.safe_load((env.path / env.conda_file).read_text())
    assert set(document) == {"name", "channels", "dependencies"}
    assert document["name"] == (env.conda_name or env.name)
    assert document["channels"] == ["conda-forge"]
    python, pip, packages = document["dependencies"]
    assert (python, pip) == (f"python={env.python}", "pip")
    *shared, own = env.editables
    expected = ["-c ../constraints.txt", "-r requirements.txt", *(f"-e {path}" for path in shared)]
    assert packages["pip"] == [*expected, f"-e {own}[{','.join(env.extras)}]"]
    for word in ("../constraints.txt", "requirements.txt", *shared):
        assert (env.path / word).exists()


@pytest.mark.parametrize("env", PROJECTS, ids=IDS)
def test_pyproject_follows_the_house_rules(env):
    document = tomllib.loads((env.path / "pyproject.toml").read_text())
    assert document["project"]["requires-python"] == ">=3.11"
    assert document["build-system"]["build-backend"] == "hatchling.build"
    package = document["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert package == [f"src/{env.smoke[-1]}"]
    assert document["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]
    assert document["tool"]["pyright"]["typeCheckingMode"] == "standard"
    assert (env.path / package[0] / "py.typed").is_file()


def test_hooks_use_the_locked_ruff_and_clone_nothing():
    document = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in document["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in document["repos"][0]["hooks"]}
    tools = workspace["ENVS"][workspace["WORKSPACE"]["tools"]]
    (ruff,) = read_lock(tools)["ruff"]
    assert hooks["ruff-check"]["additional_dependencies"] == [f"ruff=={ruff}"]
    assert hooks["ruff-format"]["additional_dependencies"] == [f"ruff=={ruff}"]
