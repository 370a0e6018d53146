"""What bases and data are called on the hub, and their licences where these are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from reward_models.loading import kind_of

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
EMBEDDED_ENCODER = "embedded:all-minilm-l6-v2"
ON_THE_HUB = {
    EMBEDDED_ENCODER: "sentence-transformers/all-MiniLM-L6-v2",
    EMBEDDED_MODEL: "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""What the embedded assets are on the hub."""
RATINGS = (
    "the {kind} of Hutto & Gilbert 2014 (VADER), snippets that about 20 people each rated from −4 "
    "to +4"
)
UNKNOWN = "unknown"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w.-]+)?")
_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".bz2", ".xz")
_WAIT = 5.0  # seconds for the hub's answer; without one the licence is unknown


@dataclass(frozen=True)
class Named:
    """A base or a data set as a card names it.

    Attributes:
        words: for people; no path of this machine.
        hub_id: None where it is on no hub.
        license: as the hub calls it; None where it is not known.
    """

    words: str
    hub_id: str | None = None
    license: str | None = None

    @property
    def licence(self) -> str:
        """Its licence in words."""
        return self.license or UNKNOWN


def base(name: str, revision: str | None = None) -> Named:
    """The model that an experiment starts from."""
    if name == "toy":
        return Named("a toy of few layers with random weights")
    if name in ON_THE_HUB:
        return Named(f"{ON_THE_HUB[name]}, from its 4-bit GGUF", ON_THE_HUB[name], "apache-2.0")
    if not on_hub(name):
        about = _metadata(Path(name).expanduser())
        return Named(f"a local model ({Path(name).name})", None, _license(about))
    return Named(name, name, _license(_fetched(name, "model", revision)))


def data(name: str) -> Named:
    """A data set."""
    if name == "toy":
        return Named("texts made up by this project, for tests", None, "apache-2.0")
    if name.startswith("embedded:"):
        return Named(RATINGS.format(kind=name.removeprefix("embedded:")), None, "mit")
    if not on_hub(name):
        path = Path(name).expanduser()
        return Named(f"own data ({path.name})", None, _license(_metadata(path)))
    return Named(name, name, _license(_fetched(name, "dataset", None)))


def on_hub(name: str) -> bool:
    """Whether a config's name of a model or a data set is a hub id."""
    if name == "toy" or name.startswith("embedded:") or name.endswith(_FILES):
        return False
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).expanduser().exists()


def without_place(name: str) -> str:
    """A config's name of a model, data or a reward, without where it lies on a machine or net."""
    kind = kind_of(name)
    if kind == "service":
        return "an HTTP service"
    if kind == "function":
        module, _, function = name.rpartition(":")
        return f"{Path(module).name}:{function}"
    if name.startswith("embedded:") or on_hub(name):
        return name
    return Path(name).name


def _license(about: Mapping[str, Any]) -> str | None:
    """The licence in a card's metadata, where it is one."""
    given = about.get("license")
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    return given if isinstance(given, str) and given not in ("", UNKNOWN) else None


def _metadata(folder: Path) -> Mapping[str, Any]:
    """The metadata of the card in a local folder; empty where there is none that can be read."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    with suppress(Exception):  # any damage of somebody's file
        if card.is_file():
            return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    return {}


@cache
def _fetched(
    name: str, kind: Literal["model", "dataset"], revision: str | None
) -> Mapping[str, Any]:
    """The metadata of a card on the hub, from the cache or by one short request."""
    from huggingface_hub import hf_hub_download

    name, _, pinned = name.partition("@")
    with suppress(Exception):  # no network, no card, no right to it: then it is not known
        path = hf_hub_download(
            name,
            "README.md",
            repo_type=kind,
            revision=pinned or revision,
            etag_timeout=_WAIT,
        )
        return _metadata(Path(path).parent)
    return {}
