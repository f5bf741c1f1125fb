"""`vla-rl recipes`: lists recipes, shows them in full, and checks them."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_rl.errors import UserError

app = typer.Typer(help="List, show and check recipes.", no_args_is_help=True)


@app.command("list")
def list_all() -> None:
    """List name, description and file of the recipes that come with the program."""
    from vla_rl.recipe import is_supervised, list_recipes, load_any_recipe

    for name, path in list_recipes().items():
        stage = " (vla-rl sft)" if is_supervised(path) else ""
        print(f"{name}\n    {load_any_recipe(path).description}{stage}\n    {path}")


@app.command()
def show(
    recipe: Annotated[
        str, typer.Argument(help="Name in `vla-rl recipes list`, or path of a file, with a slash or .yaml at its end.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields to set, like surrogate.name=ppo.", show_default=False),
    ] = None,
) -> None:
    """Print a recipe as YAML with every field, defaults and overrides included."""
    from vla_rl.recipe import find_recipe, load_any_recipe

    print(load_any_recipe(find_recipe(recipe), overrides or ()).dump_yaml(), end="")


@app.command()
def fields(
    section: Annotated[
        str, typer.Argument(help="Only this section, like replay or surrogate.", show_default=False)
    ] = "",
    supervised: Annotated[bool, typer.Option("--sft", help="Fields of recipes for `vla-rl sft`.")] = False,
) -> None:
    """List every key of a recipe: allowed values, default, meaning."""
    from vla_rl.recipe import Recipe, SupervisedRecipe, field_references

    known = field_references(SupervisedRecipe if supervised else Recipe)
    shown = [field for field in known if not section or field.path.split(".")[0] == section]
    if not shown:
        sections = dict.fromkeys(field.path.split(".")[0] for field in known)
        raise UserError(f"section '{section}' does not exist; allowed: {', '.join(sections)}")
    for field in shown:
        kind = f"  ({field.kind})" if field.kind else ""
        print(f"{field.path}{kind}\n    {field.allowed}; default: {field.default}")
        if field.description:
            print(f"    {field.description}")


@app.command()
def validate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE]... [KEY=VALUE]...",
            help="Names or files (default: all that come with the program), then fields to set in each.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check recipes and report every problem. Imports no model and no simulator."""
    from vla_rl.recipe import find_recipe, list_recipes, load_any_recipe

    overrides = [text for text in arguments or () if _is_override(text)]
    recipes = [text for text in arguments or () if not _is_override(text)]
    faults: list[str] = []
    for name in recipes or list_recipes():
        try:
            load_any_recipe(find_recipe(name), overrides)
        except UserError as error:
            faults.append(str(error))
        else:
            print(f"{name}: valid")
    if faults:
        raise UserError("\n".join(faults))


def _is_override(text: str) -> bool:
    """Return whether a text is `key.sub=value`; a file whose path contains '=' is given with a slash."""
    key, separator, _ = text.partition("=")
    return bool(separator) and "/" not in key
