"""The rooms of the code and the arrows between them, read from its import statements.

``python docs/make/rooms.py`` writes docs/rooms.txt; ``--print`` prints it instead. A room is a
package or module right under ``pipeline`` or ``classic_rl``, or one of the packages ``common`` and
``reward_models``. Imports inside functions count; those under ``if TYPE_CHECKING:`` do not. Nor do
modules that are found by their name at run time: the stages by the runner, the tools by the command
line, the algorithms by classic_rl.
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "rooms.txt"
SINGLE = ("common", "reward_models")  # packages that are one room
HALLS = ("classic_rl", "pipeline")  # packages of rooms; their own __init__ is none

# From low to high: a room imports only from those above it in this list. A room that is not here
# fails the test; a name here that is no room does no harm.
ORDER: list[str] = [
    "common",
    "classic_rl.errors",
    "classic_rl.folders",
    "classic_rl.progress",
    "classic_rl.schedules",
    "classic_rl.results",
    "classic_rl.losses",
    "classic_rl.advantages",
    "classic_rl.mdp",
    "classic_rl.envs",
    "classic_rl.pictures",
    "classic_rl.tabular",
    "classic_rl.algorithms",
    "classic_rl.deep",
    "classic_rl.a2c",
    "classic_rl.dqn",
    "classic_rl.ppo",
    "classic_rl.reinforce",
    "classic_rl.gradient_variance",
    "classic_rl.cli",
    "classic_rl.__main__",
    "reward_models",
    "pipeline.errors",
    "pipeline.bounds",
    "pipeline.launched",
    "pipeline.output",
    "pipeline.config",
    "pipeline.data",
    "pipeline.lm",
    "pipeline.models",
    "pipeline.generation",
    "pipeline.ppo",
    "pipeline.compare",
    "pipeline.cards",
    "pipeline.report",
    "pipeline.stages",
    "pipeline.plan",
    "pipeline.preview",
    "pipeline.worlds",
    "pipeline.provenance",
    "pipeline.longer",
    "pipeline.planning",
    "pipeline.runner",
    "pipeline.sharing",
    "pipeline.overoptimise",
    "pipeline.certify",
    "pipeline.label",
    "pipeline.judging",
    "pipeline.play",
    "pipeline.launch",
    "pipeline.cli",
    "pipeline.sweep",
    "pipeline.__main__",
]

INDENT: Any = {"initial_indent": "\n", "subsequent_indent": "    ", "break_on_hyphens": False}
Arrows = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the house: its dotted name, and its file."""
    files = [path for package in SINGLE + HALLS for path in sorted((root / package).rglob("*.py"))]
    names = (path.relative_to(root).with_suffix("").parts for path in files)
    return {
        ".".join(name[:-1] if name[-1] == "__init__" else name): path
        for name, path in zip(names, files, strict=True)
    }


def room(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    return parts[0] if parts[0] in SINGLE else ".".join(parts[:2])


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that are executed at some time."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(node.orelse, []))
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from statements(node)


def targets(module: str, path: Path) -> Iterator[str]:
    """Dotted names that a module imports: modules, or what is in them."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
            continue
        base = statement.module or ""
        if statement.level:
            above = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*above, base]).rstrip(".")
        yield from (f"{base}.{alias.name}" for alias in statement.names)


def module_arrows(root: Path = ROOT) -> Arrows:
    """What each module imports of the house.

    Importing ``a.b.c`` runs ``a`` and ``a.b`` too, unless the module stands in them itself.
    """
    known = modules(root)
    arrows: Arrows = {name: set() for name in known}
    for name, path in known.items():
        for target in targets(name, path):
            parts = target.split(".")
            run = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
            ours = [other for other in run if other in known]
            around = [other for other in ours[:-1] if f"{name}.".startswith(f"{other}.")]
            arrows[name] |= set(ours) - set(around) - {name}
    return arrows


def room_arrows(arrows: Arrows) -> Arrows:
    """Between rooms what is given between modules."""
    rooms: Arrows = {room(name): set() for name in arrows if name not in HALLS}
    for name in arrows.keys() - set(HALLS):
        rooms[room(name)] |= {room(other) for other in arrows[name]} - {room(name), *HALLS}
    return rooms


def circle(arrows: Arrows) -> list[str]:
    """One way that leads from a place back to it, or an empty list."""
    left = {name: set(others) for name, others in arrows.items()}
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ends}
    if not left:
        return []
    way = [min(left)]
    while way[-1] not in way[:-1]:
        way.append(min(left[way[-1]] & left.keys()))
    return way[way.index(way[-1]) :]


def upward(rooms: Arrows) -> set[tuple[str, str]]:
    """Arrows from a room to one that is not below it in the declared order."""
    place = {name: n for n, name in enumerate(ORDER)}
    return {(a, b) for a, others in rooms.items() for b in others if place[a] <= place[b]}


def page(rooms: Arrows) -> str:
    """The text of docs/rooms.txt."""
    text = "Rooms from low to high; a room imports only from those above it.\n"
    text += "Made by `python docs/make/rooms.py`.\n"
    for name in sorted(rooms, key=ORDER.index):
        below = ", ".join(sorted(rooms[name], key=ORDER.index))
        text += textwrap.fill(f"{name} → {below or 'nothing of ours'}", 100, **INDENT) + "\n"
    return text


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the rooms of the code and their imports.")
    parser.add_argument("--print", action="store_true", help="print them and write nothing")
    only_print = parser.parse_args(words).print
    rooms = room_arrows(module_arrows())
    if unknown := sorted(rooms.keys() - set(ORDER)):
        parser.error(f"{', '.join(unknown)}: give it a place in ORDER")
    if only_print:
        print(page(rooms), end="")
    else:
        PAGE.write_text(page(rooms), encoding="utf-8")


if __name__ == "__main__":
    main()
