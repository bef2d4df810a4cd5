"""The lists of what is needed agree: pyproject.toml, environment.yml and constraints.txt."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# conda-forge's name for the same library without a Qt of its own.
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
LISTS = ("pyproject.toml", "environment.yml", "constraints.txt", "Makefile", ".ci/run")


def floors(requirements: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(requirement) for requirement in requirements]
    return {canonicalize_name(one.name): one.specifier for one in parsed}


def pins() -> dict[str, str]:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in exact}


def environment() -> tuple[dict[str, SpecifierSet], list[str]]:
    """Return the floors of environment.yml and the options it hands to pip."""
    text = (CHECKOUT / "environment.yml").read_text(encoding="utf-8")
    listed = yaml.safe_load(text)["dependencies"]
    conda = [entry for entry in listed if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    options = [entry for entry in pip if entry.startswith("-")]
    found = floors([*conda, *(entry for entry in pip if entry not in options)])
    return {CONDA_NAMES.get(name, name): specifier for name, specifier in found.items()}, options


def test_the_conda_environment_has_the_floors_of_the_package() -> None:
    found, options = environment()
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet()
    assert found == floors([*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["lab"]])
    assert options == ["--editable ."]  # Binder runs the notebooks of the same commit


def imported() -> set[str]:
    """Return the top-level modules that the package imports anywhere, its own left out."""
    found: set[str] = set()
    for path in (CHECKOUT / "poisonkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"poisonkit"}


def test_everything_that_the_package_imports_is_a_requirement_by_name() -> None:
    extras = (*EXTRAS["book"], *EXTRAS["cluster"])
    required = set(floors([*PROJECT["dependencies"], *extras]))
    brought_by = packages_distributions()
    # What is not installed here is called like its module.
    distributions = {name: brought_by.get(name, [name]) for name in imported()}
    assert {"torch", "jupyter_client", "PIL"} <= set(distributions)
    assert not {
        name: found
        for name, found in distributions.items()
        if not required & {canonicalize_name(one) for one in found}
    }


def test_no_requirement_is_without_a_floor() -> None:
    listed = floors(
        [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    )
    assert not [name for name, specifier in listed.items() if ">=" not in str(specifier)]


def test_the_exact_versions_satisfy_every_floor() -> None:
    exact = pins()
    for extra in (PROJECT["dependencies"], *EXTRAS.values()):
        for name, specifier in floors(extra).items():
            assert name in exact
            assert specifier.contains(exact[name], prereleases=True), name


def test_jupyter_book_stays_on_the_line_that_reads_the_settings() -> None:
    assert not floors(EXTRAS["book"])["jupyter-book"].contains("2.0.0")


def test_constraints_are_plain_and_fit_every_platform() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    plain = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*")
    entries = [line for line in lines if not line.startswith("#")]
    assert not [line for line in entries if not plain.fullmatch(line)]
    assert not [name for name in pins() if re.match("nvidia-|cuda-|triton$|poisonkit$", name)]
    assert entries == sorted(entries, key=lambda line: canonicalize_name(line.split("==")[0]))


@pytest.mark.parametrize("name", LISTS)
def test_no_list_names_a_package_index_or_a_folder_of_one_machine(name: str) -> None:
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    assert not re.search(r"index-url|find-links|pypi|file://|/(home|root|Users|work)/", text)


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
