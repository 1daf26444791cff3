"""What is shipped: the files of wheel and sdist, the dependencies, and no dangerous calls."""

import ast
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling import build

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "async_safe_cache"
MODULES = sorted(PACKAGE.rglob("*.py"))
DEPENDENCIES = {"anyio>=4", "aiorwlock>=1.5.1"}
DIST_INFO = "async_safe_cache-0.1.0.dist-info"

SDIST_TOP = {
    "async_safe_cache",
    "async_safe_cache_pytest.py",
    "tests",
    "examples",
    "benchmarks",
    "docs",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    ".ci",
    # hatchling adds these three itself
    "pyproject.toml",
    "PKG-INFO",
    ".gitignore",
}


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build.build_sdist(str(folder))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build.build_wheel(str(folder))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    dist_info = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert names_of(wheel) == (
        package
        | {"async_safe_cache/_demo/race_conditions.py", "async_safe_cache_pytest.py"}
        | {f"{DIST_INFO}/{name}" for name in dist_info}
    )
    assert {"async_safe_cache/__init__.py", "async_safe_cache/py.typed"} <= package
    assert {path.suffix for path in map(Path, package)} == {".py", ".typed"}


def test_the_demo_of_the_wheel_runs_the_example_of_the_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read("async_safe_cache/_demo/race_conditions.py")
    assert shipped == (ROOT / "examples" / "race_conditions.py").read_bytes()


def test_an_editable_install_copies_no_module(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        editable = tmp_path / build.build_editable(str(tmp_path))
    assert {Path(name).suffix for name in names_of(editable) if DIST_INFO not in name} == {".pth"}


def test_the_sdist_holds_the_sources_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        paths = [Path(name).relative_to("async_safe_cache-0.1.0") for name in archive.getnames()]
    assert {path.parts[0] for path in paths} == SDIST_TOP
    assert [path for path in paths if path.suffix == ".pyc" or "__pycache__" in path.parts] == []


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_sources(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "async_safe_cache-0.1.0")
        again = tmp_path / build.build_wheel(str(tmp_path))
    assert names_of(again) == names_of(wheel)


def test_the_package_needs_anyio_and_aiorwlock_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{DIST_INFO}/METADATA").decode())
        scripts = archive.read(f"{DIST_INFO}/entry_points.txt").decode()
    needed = metadata.get_all("Requires-Dist", [])
    assert {line for line in needed if "extra ==" not in line} == DEPENDENCIES
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert scripts.split() == [
        "[console_scripts]",
        "async-safe-cache",
        "=",
        "async_safe_cache.__main__:main",
        "[pytest11]",
        "async_safe_cache_pytest",
        "=",
        "async_safe_cache_pytest",
    ]


# ---- the source itself

# What an extra brings, imported by one module when it is asked for.
EXTRAS = {"warming.py": {"rich"}}

ALLOWED_IMPORTS = set(sys.stdlib_module_names) | {"anyio", "aiorwlock", "async_safe_cache"}
DANGEROUS_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__"}


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)


def dangerous_names_of(tree: ast.AST) -> Iterator[str]:
    """Any mention counts, called or not: `run = eval` is a call in disguise."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in DANGEROUS_CALLS:
            yield node.id
        elif isinstance(node, ast.Attribute):
            written = ast.unparse(node)
            if written in {f"builtins.{name}" for name in DANGEROUS_CALLS} | {"yaml.load"}:
                yield written
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and not isinstance(node.args[0], ast.Constant)
        ):
            yield "import_module of data"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_unpickles_evaluates_or_imports_what_it_should_not(path: Path) -> None:
    """Only _wrapper.py may execute code that it builds: wrappers, from names of parameters."""
    tree = ast.parse(path.read_bytes())
    imported = {name.partition(".")[0] for name in imports_of(tree)}
    assert imported & DANGEROUS_MODULES == set()
    assert imported - ALLOWED_IMPORTS - EXTRAS.get(path.name, set()) == set()
    allowed = {"exec", "compile"} if path == PACKAGE / "_wrapper.py" else set[str]()
    assert set(dangerous_names_of(tree)) - allowed == set()


@pytest.mark.parametrize(
    "source", ["eval('1')", "f = exec", "builtins.eval('1')", "yaml.load(x)", "import_module(x)"]
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert list(dangerous_names_of(ast.parse(source))) != []


def test_the_scan_lets_through_what_only_looks_alike() -> None:
    source = "re.compile(p); ast.literal_eval(s); importlib.import_module('json')"
    assert list(dangerous_names_of(ast.parse(source))) == []
