"""Completions from a running vLLM server, which gets the policy's weights after every update.

Tokens go out and tokens come back, never text. Nothing but the temperature changes the logits:
every other setting that a server's ``generation_config.json`` may hold is said in each request. A
row's seed is its own, so that what is asked for again is the same, whichever process asks.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.output.console import is_main_process, say, wait_for_every_rank
from pipeline.ppo.engines.interface import Drawn, Request
from pipeline.ppo.engines.probe import Watch, difference, scored, sequences
from pipeline.ppo.engines.server import Gone, NoSuchPath, Server
from pipeline.ppo.engines.weights import Adapter, Folder, Nccl

Way = Literal["auto", "adapter", "folder", "nccl"]
"""How the server gets the weights; ``auto`` is an adapter for LoRA and a folder without."""

_COMPLETIONS = "/v1/completions"
_LEAST_TEMPERATURE = 0.01  # vLLM raises a lower one to this
_FLOOR = -9998.0  # vLLM writes -9999 for what is no finite log-probability
_PLAIN = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "n": 1,
    "ignore_eos": True,  # the policy's stop tokens end a completion, and no others
    "skip_special_tokens": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "logprobs": 0,  # of the token that was drawn, and no others
}


class VLLM:
    """A vLLM server as an engine.

    Args:
        url: where ``vllm serve`` listens, without a path.
        folder: where weights are written for the server to read; both must see it.
        temperature: at which completions will be drawn.
        header_env: environment variable that holds a header, ``Authorization: Bearer …``.
        timeout: seconds for one request. retries: further tries of one that failed for now.
        weights: how the server gets them.
        tolerance: nats a token by which the server's log-probabilities may differ on average.
    """

    beside = True  # it has weights of its own, so it may draw while these change (overlap)

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        temperature: float = 1.0,
        header_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 8,
        weights: Way = "auto",
        tolerance: float = 0.02,
    ) -> None:
        self._url, self._folder, self._temperature = url, folder, temperature
        self._way, self._tolerance = weights, tolerance
        self._server = Server(url, header_env=header_env, timeout=timeout, retries=retries)
        self._run = ""
        self._weights: Adapter | Folder | Nccl | None = None
        self._probe: list[tuple[int, ...]] = []
        self._watch: Watch | None = None
        self._ours: Tensor | None = None  # what the trainer says of the probe at the last load

    # -- the engine's interface ------------------------------------------------------------------

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        """See that the server has this policy and does as it is asked.

        Raises:
            UserError: it does not; the line says how to start it.
        """
        if self._temperature < _LEAST_TEMPERATURE:
            raise UserError(
                f"temperature: vLLM draws at {_LEAST_TEMPERATURE} or above, not at"
                f" {self._temperature:g}; raise it"
            )
        name, window = self._served()
        if window is not None and window < longest:
            raise UserError(
                f"{self._server.name}: takes {window} tokens, and prompt and response have up to"
                f" {longest}; start vLLM with --max-model-len {longest}"
            )
        self._weights = self._weights or self._by(policy, name)  # which drops what it has sent
        self._run = broadcast_object_list([f"run-{secrets.token_hex(4)}"])[0]
        self._probe = sequences(policy, tokenizer, longest)
        if is_main_process():
            self._watch = None
            self._deliver(policy, "begin")
        wait_for_every_rank()

    def load(self, policy: nn.Module, step: int) -> None:
        """Give the server the weights, and see that it answers from them.

        Raises:
            UserError: it does not take them, or answers from others.
        """
        self._deliver(policy, str(step))

    def __call__(self, request: Request) -> Drawn:
        """Ask for every row by itself; vLLM makes its batches of them."""
        weights, label = self._ways(), self._label(str(request.step))
        weights.label = label  # which another process may have sent
        bodies = [self._body(request, row, label) for row in range(len(request.prompt_ids))]

        def mend(failure: Exception) -> None:
            """Where the server has started anew it has lost the weights."""
            if isinstance(failure, Gone):
                weights.again()
                self._look_again()
            else:
                self._restored(label)

        number = 0
        while True:
            version = self._restored(label)
            rows = self._server.post_all(
                _COMPLETIONS, bodies, lambda row, said: self._read(request, row, said), mend
            )
            if self._restored(label) == version:
                break
            number += 1  # it has started anew in between, and some rows may be of older weights
            if number > 3:
                raise UserError(f"{self._server.name}: starts anew in every rollout; see its log")
        return Drawn([tokens for tokens, _ in rows], [logps for _, logps in rows])

    # -- requests --------------------------------------------------------------------------------

    def _label(self, step: str) -> str:
        return f"{self._run}-{step}"

    def _ways(self) -> Adapter | Folder | Nccl:
        assert self._weights is not None, "begin() comes first"
        return self._weights

    def _body(self, request: Request, row: int, label: str) -> dict[str, Any]:
        key = f"{request.seed}:{request.first + row}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
        return {
            **_PLAIN,
            "model": self._ways().model(label),
            "prompt": [list(request.prompt_ids[row])],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "stop_token_ids": sorted(request.stop),
            "seed": seed,
            "cache_salt": label,
        }

    def _read(self, request: Request, row: int, said: Any) -> tuple[list[int], list[float]]:
        """Tokens and log-probabilities of an answer.

        Raises:
            ConnectionError: it is no whole one, and is to be asked for again.
            UserError: it is another than was asked for.
        """
        try:
            choice = said["choices"][0]
            tokens, logps = list(choice["token_ids"]), choice["logprobs"]["token_logprobs"]
            prompt, reason = choice["prompt_token_ids"], choice["finish_reason"]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{self._server.name}: answers without tokens and their log-probabilities; it must"
                " be vLLM 0.11 or later (return_token_ids)"
            ) from None
        if prompt != list(request.prompt_ids[row]):
            raise UserError(f"{self._server.name}: has changed a prompt's tokens; see its settings")
        if not all(isinstance(x, float | int) and x > _FLOOR for x in logps):
            raise UserError(f"{self._server.name}: its log-probabilities are not finite")
        ended = bool(tokens) and tokens[-1] in request.stop
        whole = len(tokens) == request.max_new_tokens
        if not tokens or len(logps) != len(tokens) or not (ended or whole):
            raise ConnectionError(f"an answer that broke off ({reason}, {len(tokens)} tokens)")
        return tokens, [min(float(x), 0.0) for x in logps]

    def _restored(self, label: str) -> str:
        """What the server says of its weights, which are given to it once more if they are gone."""
        weights = self._ways()
        try:
            return weights.there(label)
        except Gone as gone:
            say(f"warning: {self._server.name}: {gone}; they are loaded again")
            weights.again()
            self._look_again()
            return weights.there(label)

    # -- what is checked -------------------------------------------------------------------------

    def _served(self) -> tuple[str, int | None]:
        """The name that the server's own model goes by, and how many tokens it takes."""
        try:
            models = self._server.get("/v1/models")["data"]
            own = next(model for model in models if not model.get("parent"))
            return str(own["id"]), own.get("max_model_len")
        except (NoSuchPath, KeyError, TypeError, StopIteration):
            raise UserError(
                f"{self._server.name}: is no vLLM server (/v1/models); give its address without a"
                " path, http://host:port"
            ) from None

    def _by(self, policy: nn.Module, name: str) -> Adapter | Folder | Nccl:
        way = self._way
        if way == "auto":
            way = "adapter" if isinstance(policy, PeftModel) else "folder"
        if way == "adapter":
            return Adapter(self._server, self._folder)
        if way == "folder":
            return Folder(self._server, name, self._folder)
        return Nccl(self._server, name, self._url)

    def _deliver(self, policy: nn.Module, step: str) -> None:
        """Send the weights, and compare what both say of the probe."""
        label = self._label(step)
        self._server.patiently(lambda: self._ways().send(policy, label))
        ours, theirs = scored(policy, self._probe, self._temperature), self._scores(label)
        apart = difference(ours, theirs)
        if self._watch is None:
            self._see_temperature(policy, apart, theirs)
            self._watch = Watch(ours, theirs)
            say(f"vLLM: log-probabilities differ by {apart:.2g} nats a token from the trainer's")
        stale = self._watch.behind(ours, theirs)
        if stale or apart > self._tolerance:
            self._refuse(apart, stale)
        self._ours = ours

    def _see_temperature(self, policy: nn.Module, apart: float, theirs: Tensor) -> None:
        """Whether log-probabilities are told at the temperature that tokens are drawn at."""
        plainly = difference(scored(policy, self._probe), theirs)
        if self._temperature != 1.0 and plainly < min(apart, self._tolerance):
            raise UserError(
                f"{self._server.name}: tells log-probabilities at temperature 1 of tokens that it"
                f" draws at {self._temperature:g}; start vLLM with --logprobs-mode"
                " processed_logprobs"
            )

    def _look_again(self) -> None:
        """After a new start: whether it is the same model with the same weights."""
        if self._ours is None:  # only the first process knows
            return
        apart = difference(self._ours, self._scores(self._ways().label))
        if apart > self._tolerance:
            self._refuse(apart, False)

    def _refuse(self, apart: float, stale: bool) -> None:
        if stale:
            raise UserError(
                f"{self._server.name}: answers from old weights: its log-probabilities do not"
                " follow the policy's; see its log, and start it and the run again"
            )
        raise UserError(
            f"{self._server.name}: answers from another model than is trained: its"
            f" log-probabilities differ by {apart:.2g} nats a token, {self._tolerance:g} are"
            " allowed; have vLLM serve the model that training starts from, in its precision and"
            " quantization, or raise server_tolerance"
        )

    def _scores(self, label: str) -> Tensor:
        """The server's log-probabilities of the probe, as :func:`scored` at the temperature.

        Each is asked for as that of a next token, on the path that completions take: vLLM tells
        those of a prompt's tokens at temperature 1 alone, and on processors not with adapters.
        """
        cuts = [(row, end) for row in self._probe for end in range(1, len(row))]
        bodies = [
            {
                **_PLAIN,
                "model": self._ways().model(label),
                "prompt": [list(row[:end])],
                "max_tokens": 1,
                "temperature": self._temperature,
                "seed": 0,
                "logprobs": 1,
                "logprob_token_ids": [row[end]],
                "cache_salt": label,
            }
            for row, end in cuts
        ]

        def read(number: int, said: Any) -> float:
            row, end = cuts[number]
            try:
                value = said["choices"][0]["logprobs"]["top_logprobs"][0][f"token_id:{row[end]}"]
            except (KeyError, IndexError, TypeError):
                raise UserError(
                    f"{self._server.name}: does not tell the log-probability of a token that it is"
                    " asked about (logprob_token_ids); it must be vLLM 0.32 or later"
                ) from None
            if not value > _FLOOR:
                raise UserError(f"{self._server.name}: its log-probabilities are not finite")
            return value

        values = self._server.post_all(_COMPLETIONS, bodies, read, lambda _: None)
        return torch.tensor(values, dtype=torch.float64)
