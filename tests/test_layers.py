"""Who may import whom. The table is the architecture; a change of it is a commit of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vla_rl"

BELOW = {"types", "errors", "files", "container", "section", "libero_suites", "rl", "credit", "policies", "envs"}
BELOW |= {"ipc", "replay", "workers", "learner", "reporting", "tracking", "remote"}

ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "files": set(),
    "container": set(),
    "section": set(),
    "libero_suites": set(),
    # A kind of environment, policy, surrogate or credit brings its own section of a recipe.
    "rl": {"section"},
    "credit": {"section", "rl"},
    "tracking": {"section"},  # a tracker brings its own section of a recipe too
    "recipe": {"errors", "section", "rl", "credit", "envs", "policies", "tracking"},
    "policies": {
        "types",
        "errors",
        "files",
        "container",
        "section",
        "rl",
    },  # rl: densities
    "envs": {"types", "errors", "files", "section", "libero_suites"},
    "ipc": {"types", "errors", "container"},
    "remote": {"types", "errors", "container", "ipc", "envs"},  # what an env worker builds in place of an environment
    "replay": {"types", "errors", "ipc"},
    "workers": {"types", "errors", "ipc", "replay", "envs", "policies"},
    "learner": {"types", "errors", "files", "container", "section", "ipc", "replay", "policies", "rl", "credit"},
    "reporting": {"types", "errors", "files", "container", "__init__"},
    "watch": {"errors", "files", "reporting", "__init__"},  # reads folders of runs, so it needs nothing that makes them
    "doctor": {"types", "errors", "envs", "ipc"},
    "demos": {"types", "errors", "files", "section"},  # section: the form in which a fault is told
    # Demonstrations need readers and files, a simulator and processes, and no recipe.
    "collection": {
        "types",
        "errors",
        "files",
        "section",
        "libero_suites",
        "envs",
        "ipc",
        "workers",
        "reporting",
        "demos",
    },
    # The top: what sees a recipe. `run` turns one into plain arguments and running processes.
    "run": BELOW | {"recipe"},
    "evaluation": BELOW | {"recipe", "run"},
    "train": BELOW | {"recipe", "run", "evaluation"},
    "sft": BELOW | {"recipe", "run", "evaluation", "demos"},
    "export": BELOW | {"recipe", "run", "evaluation"},
    "sharing": BELOW | {"__init__", "recipe", "run", "evaluation", "export"},
    "studies": BELOW | {"recipe", "run", "evaluation", "train"},
    "cli": BELOW
    | {
        "__init__",
        "recipe",
        "run",
        "evaluation",
        "train",
        "sft",
        "export",
        "sharing",
        "studies",
        "doctor",
        "demos",
        "collection",
        "watch",
    },
    "__main__": {"cli"},
}

# Heavy or delicate packages, and the modules that may import them, inside functions too.
CONFINED: dict[str, tuple[str, ...]] = {
    "accelerate": ("vla_rl.learner",),
    "deepspeed": ("vla_rl.learner",),
    "peft": ("vla_rl.policies",),
    "transformers": ("vla_rl.policies.openvla_oft",),
    "tokenizers": ("vla_rl.policies.openvla_oft",),
    "libero": ("vla_rl.envs.libero",),
    "robosuite": ("vla_rl.envs.libero",),
    "bddl": ("vla_rl.envs.libero",),
    "mujoco": ("vla_rl.envs.libero", "vla_rl.envs.metaworld"),
    "metaworld": ("vla_rl.envs.metaworld",),
    "matplotlib": ("vla_rl.reporting", "vla_rl.studies"),
    "imageio_ffmpeg": ("vla_rl.evaluation",),
    "h5py": ("vla_rl.demos.h5_files",),
    "pyarrow": ("vla_rl.demos.parquet",),
    "av": ("vla_rl.demos.videos",),
    "huggingface_hub": (
        "vla_rl.sharing.hub_upload",
        "vla_rl.policies.openvla_oft.hub",
        "vla_rl.envs.libero.full_assets",
    ),
    "ray": ("vla_rl.remote.connection",),
    "grpc": ("vla_rl.remote.connection",),
    "wandb": ("vla_rl.tracking.wandb",),
    "trackio": ("vla_rl.tracking.trackio",),
    "mlflow": ("vla_rl.tracking.mlflow",),
    "pydantic": (
        *("vla_rl.section", "vla_rl.recipe"),
        *(
            "vla_rl.rl.surrogates",
            "vla_rl.rl.loss_weights",
            "vla_rl.rl.optimizer_section",
            "vla_rl.credit",
            "vla_rl.envs",
            "vla_rl.policies",
            "vla_rl.tracking",
        ),
    ),
    "yaml": ("vla_rl.recipe", "vla_rl.envs.libero"),
    "typer": ("vla_rl.cli",),
}
ONE_MODULE = ("libero",)

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """`recipe` for vla_rl.recipe.model; `__init__` for vla_rl itself."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(file: Path) -> Iterator[str]:
    """Every module that a file names in an import, at the top or inside a function, resolved to absolute names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            # `from vla_rl import train` imports a module, `from vla_rl import __version__` does not.
            if node.module == "vla_rl":
                yield from (
                    f"vla_rl.{alias.name}" if (PACKAGE / f"{alias.name}.py").exists() or (PACKAGE / alias.name).is_dir()
                    else "vla_rl"
                    for alias in node.names
                )  # fmt: skip
            else:
                yield node.module or ""


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_every_part_of_the_package_has_a_row() -> None:
    assert {layer_of(module_name(file)) for file in FILES} <= set(ALLOWED)
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_imports_only_what_its_layer_may(file: Path) -> None:
    layer = layer_of(module_name(file))
    ours = {layer_of(name) for name in imports_of(file) if name.split(".")[0] == "vla_rl"}
    assert ours - {layer} <= ALLOWED[layer]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_heavy_packages_stay_where_they_belong(file: Path) -> None:
    module = module_name(file)
    for name in imports_of(file):
        places = CONFINED.get(name.split(".")[0])
        assert places is None or within(module, places), f"{module} imports {name}, which belongs to {places}"


@pytest.mark.parametrize("package", ONE_MODULE)
def test_libero_has_one_importer(package: str) -> None:
    importers = {module_name(file) for file in FILES for name in imports_of(file) if name.split(".")[0] == package}
    assert len(importers) <= 1


def test_nothing_imports_tests_or_scripts() -> None:
    for file in FILES:
        assert not {name.split(".")[0] for name in imports_of(file)} & {"tests", "scripts", "conftest", "pytest"}


def test_the_layers_have_no_cycle() -> None:
    """A layer may import only layers that come to rest below it."""
    settled: set[str] = set()
    while len(settled) < len(ALLOWED):
        ready = {layer for layer, below in ALLOWED.items() if below <= settled} - settled
        assert ready, f"a cycle among {set(ALLOWED) - settled}"
        settled |= ready


def test_workers_and_learner_do_not_know_each_other() -> None:
    assert "learner" not in ALLOWED["workers"]
    assert "workers" not in ALLOWED["learner"]


KINDS_OF_ENVIRONMENTS = ("vla_rl.envs.libero", "vla_rl.envs.metaworld", "vla_rl.envs.toy", "vla_rl.envs.gates")
KNOW_NO_KIND = ("remote", "recipe", "run", "train", "workers", "replay", "ipc", "learner", "policies", "reporting")


@pytest.mark.parametrize(
    "file", [file for file in FILES if layer_of(module_name(file)) in KNOW_NO_KIND], ids=module_name
)
def test_what_runs_environments_knows_no_kind_of_them(file: Path) -> None:
    """`vla_rl.envs.kinds` lists them; else a new one would be work in many places."""
    assert not [name for name in imports_of(file) if within(name, KINDS_OF_ENVIRONMENTS)]


KINDS_OF_POLICIES = ("vla_rl.policies.mlp", "vla_rl.policies.openvla_oft")


@pytest.mark.parametrize(
    "file", [file for file in FILES if layer_of(module_name(file)) in {*KNOW_NO_KIND, "envs"} - {"policies"}],
    ids=module_name,
)  # fmt: skip
def test_what_trains_policies_and_acts_with_them_knows_no_kind_of_them(file: Path) -> None:
    """`vla_rl.policies.kinds` lists them. `export` writes the layout of one kind, and knows it alone."""
    assert not [name for name in imports_of(file) if within(name, KINDS_OF_POLICIES)]


def renames_and_flushes(file: Path) -> list[str]:
    """Calls by which a file could be replaced or flushed: `os.fsync`, `path.rename(...)`, `path.replace(target)`."""
    found = []
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and not call.keywords:
            name, of_os = call.func.attr, ast.unparse(call.func.value) == "os"
            # `text.replace(old, new)` has two arguments, `date.replace(tzinfo=...)` only named ones.
            if name in ("rename", "renames", "fsync") or (name == "replace" and (of_os or len(call.args) == 1)):
                found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_files_are_renamed_and_flushed_in_one_place(file: Path) -> None:
    assert bool(renames_and_flushes(file)) == (module_name(file) == "vla_rl.files")


def statements_for_types_only(tree: ast.Module) -> set[ast.stmt]:
    """Statements under `if TYPE_CHECKING:`, which never run."""
    return {
        statement
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in node.body
        for statement in ast.walk(inner)
        if isinstance(statement, ast.stmt)
    }


def files_imported_by(file: Path) -> set[Path]:
    """Files of the package that run because this one does, or once one of its functions is called."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = statements_for_types_only(tree)
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return {MODULES[name] for name in names & set(MODULES)}


MODULES = {module_name(file): file for file in FILES}


def in_circles(imports: dict[str, set[str]]) -> set[str]:
    """Names from which a chain of imports leads back to themselves."""

    def reached_from(name: str) -> set[str]:
        reached: set[str] = set()
        waiting = set(imports[name])
        while waiting:
            reached |= waiting
            waiting = {inner for each in waiting for inner in imports[each]} - reached
        return reached

    return {name for name in imports if name in reached_from(name)}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Neither at the top nor inside functions. Imports for type checkers alone may close a circle: they never run."""
    imports = {
        module_name(file): {module_name(other) for other in files_imported_by(file)} - {module_name(file)}
        for file in FILES
    }
    assert in_circles(imports) == set()


def test_circles_are_found_behind_functions_and_over_several_files() -> None:
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == {"a", "b", "c"}
    assert in_circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()


# Names that every room of a sort has, or a kind of environment and its study: a search for one says which is meant by
# its folder. Any other name belongs to one module, so that a search, a traceback and a sentence mean one thing.
SHARED_NAMES = {"base", "kind", "kinds", "section", "plan", "env", "policy", "libero", "metaworld"}
SHARED_NAMES |= {"model"}  # a policy's network, and the recipe as a model of pydantic
ROOMS = ("envs", "policies", "studies")  # one folder for each kind; parallel parts of siblings have the same name


def home(file: Path) -> str | None:
    """Return what a name belongs to; None for a verb of the command line, whose file has the verb's name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    if parts[:1] == ("cli",):
        return None
    return "/".join((parts[0], "*", *parts[2:]) if len(parts) > 2 and parts[0] in ROOMS else parts)


def names_in_two_places(files: list[Path]) -> dict[str, set[str]]:
    homes: dict[str, set[str]] = {}
    for place in filter(None, map(home, files)):
        folder, _, name = place.rpartition("/")
        if folder != name:  # learner/learner.py is what its folder is about
            homes.setdefault(name, set()).add(place)
    return {name: places for name, places in homes.items() if len(places) > 1 and name not in SHARED_NAMES}


def test_a_name_belongs_to_one_module() -> None:
    assert names_in_two_places(FILES) == {}


def test_a_second_module_of_a_name_is_found_unless_it_is_a_verb_or_a_sibling() -> None:
    def found(*places: str) -> dict[str, set[str]]:
        return names_in_two_places([PACKAGE / place for place in places])

    assert found("learner/metrics.py", "reporting/metrics.py") == {"metrics": {"learner/metrics", "reporting/metrics"}}
    assert found("files.py", "studies/libero/files.py") == {"files": {"files", "studies/*/files"}}
    assert found("rl/surrogates/__init__.py", "studies/surrogates.py").keys() == {"surrogates"}
    assert found("cli/train.py", "train.py") == {}
    assert found("studies/libero/plots.py", "studies/metaworld/plots.py") == {}
    assert found("envs/libero/section.py", "section.py") == {}
    assert found("learner/__init__.py", "learner/learner.py") == {}
