"""How a vLLM server gets the policy's weights: as an adapter, from a folder, or over NCCL.

Each way gives a set of weights a label that no other has: the run, the optimizer step and a count.
Nothing can then be answered from older weights under a newer one's label, and the server's cache of
prompts, which is salted with it, holds nothing of theirs.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from common.files import new_folder
from common.service import RefusedRequest, ServiceError, ServiceMistake
from pipeline.errors import UserError
from pipeline.lm.models import base_of
from pipeline.ppo.engines.server import Gone, NoSuchPath, Server, said

DEVELOPMENT = "VLLM_SERVER_DEV_MODE=1"


class Adapter:
    """LoRA: a folder that both see, and a model of its own on the server for each step.

    Attributes:
        label: of the weights that were sent last, by whichever process.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder, self.label = server, folder, ""

    def send(self, policy: nn.Module, label: str) -> None:
        """Save the adapter, load it under its label, and drop the one before."""
        if not isinstance(policy, PeftModel):
            raise UserError(
                "server_weights: adapter is for LoRA (model.use_peft: true), and this policy has no"
                " adapter; set folder or nccl"
            )
        with new_folder(self._folder / label) as beside:
            policy.save_pretrained(str(beside))
            name = policy.active_adapter
            if name != "default":  # saved in a folder of its own
                inner = beside / str(name)
                for file in inner.iterdir():
                    os.replace(file, beside / file.name)
                inner.rmdir()
        before, self.label = self.label, label
        self._load(label)
        if before and before != label:
            self._drop(before)

    def again(self) -> None:
        """Load it from its folder, which is still there."""
        self._load(self.label)

    def model(self, label: str) -> str:
        """Its own name."""
        return label

    def there(self, label: str) -> str:
        """Its name alone: what is not there, vLLM does not answer for."""
        return label

    def _load(self, label: str) -> None:
        folder = (self._folder / label).resolve()
        body = {"lora_name": label, "lora_path": str(folder)}
        try:
            self._server.once("/v1/load_lora_adapter", body)
        except (ServiceError, RefusedRequest, ServiceMistake) as error:
            words = said(error)
            if "already been loaded" in words:  # by another process, or by a try unheard of
                return
            if isinstance(error, ServiceError) and not words:
                raise
            if isinstance(error, ServiceMistake) and error.status == 404 and not words:
                raise UserError(
                    f"{self._server.name}: takes no adapters; start vLLM with --enable-lora and"
                    " VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
                ) from None
            raise UserError(
                f"{self._server.name}: does not load the adapter in {folder}"
                f" ({words or error}); see --enable-lora and --max-lora-rank, and that the server"
                " sees that folder (server_folder)"
            ) from None

    def _drop(self, label: str) -> None:
        # Where it is gone already, its name is never asked for again.
        with suppress(ConnectionError, TimeoutError, RefusedRequest, ServiceMistake):
            self._server.once("/v1/unload_lora_adapter", {"lora_name": label})
        shutil.rmtree(self._folder / label, ignore_errors=True)


class _Versioned:
    """Weights in the place of the server's own, under the name that it serves them by.

    Attributes:
        label: of the weights that were sent last, by whichever process.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name, self.label, self._count = server, name, "", 0

    def model(self, label: str) -> str:
        """The one that is served."""
        return self._name

    def there(self, label: str) -> str:
        """The version that the server was told, which a new start forgets."""
        found = str(self._server.get("/weight_info").get("weight_version"))
        if found.rpartition(".")[0] != label:
            raise Gone(f"it has the weights {found!r} where it was given {label!r}")
        return found

    def _told(self, label: str) -> None:
        """Forget what was computed from other weights, and remember the label of these."""
        cleared = self._server.post("/reset_prefix_cache", {})
        if not (cleared or {}).get("success", True):
            raise ServiceError("its cache of prompts is in use and keeps what old weights made")
        self._count += 1
        version = f"{label}.{os.getpid()}-{self._count}"
        self._server.post("/update_weight_version", {"new_version": version})


class Folder(_Versioned):
    """All weights: a folder that both see, from which the server loads anew."""

    def __init__(self, server: Server, name: str, folder: Path) -> None:
        super().__init__(server, name)
        self._folder = folder

    def send(self, policy: nn.Module, label: str) -> None:
        """Save the whole model, have it loaded, and remove the one before."""
        if isinstance(policy, PeftModel):
            raise UserError(
                "server_weights: folder is for policies without LoRA; set it to adapter"
            )
        with new_folder(self._folder / label) as beside:
            base_of(policy).save_pretrained(str(beside))
        before, self.label = self.label, label
        self._load(label)
        if before and before != label:
            shutil.rmtree(self._folder / before, ignore_errors=True)

    def again(self) -> None:
        """Load it from its folder, which is still there."""
        self._load(self.label)

    def _load(self, label: str) -> None:
        folder = (self._folder / label).resolve()
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._server.once("/collective_rpc", body)
        except (RefusedRequest, ServiceMistake) as error:
            if isinstance(error, ServiceMistake) and error.status == 404 and not said(error):
                raise UserError(
                    f"{self._server.name}: takes no new weights; start vLLM with {DEVELOPMENT} in"
                    " its environment, or train LoRA (model.use_peft: true)"
                ) from None
            raise UserError(
                f"{self._server.name}: does not load the weights in {folder}"
                f" ({said(error) or error}); see that the server sees that folder (server_folder)"
            ) from None
        self._told(label)


class Nccl(_Versioned):
    """All weights, from card to card, by TRL's client of vLLM's weight transfer."""

    def __init__(self, server: Server, name: str, url: str) -> None:
        super().__init__(server, name)
        self._url, self._client = url, None

    def send(self, policy: nn.Module, label: str) -> None:
        """Broadcast every parameter."""
        if isinstance(policy, PeftModel):
            raise UserError("server_weights: nccl is for policies without LoRA; set it to adapter")
        if self._client is None:
            self._client = self._connected(base_of(policy).device)
        self._client.update_model_params(base_of(policy))
        self.label = label
        self._told(label)

    def again(self) -> None:
        """Not possible: the group of processes that the weights go through has lost a member."""
        raise UserError(
            f"{self._server.name}: has started anew, and its group for NCCL is gone with the old"
            " one; start the run again: it goes on from its last checkpoint"
        )

    def _connected(self, device: Any) -> Any:
        try:
            from trl.generation.vllm_client import VLLMClient

            client = VLLMClient(base_url=self._url)
            client.init_communicator(device=device)
        except NoSuchPath:
            raise
        except Exception as error:  # of requests, vLLM, NCCL or TRL itself
            words = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self._server.name}: no transfer of weights by NCCL ({words}); it needs cards"
                " here and there, vllm and requests installed here too, and a server started with"
                f' {DEVELOPMENT} and --weight-transfer-config \'{{"backend": "nccl"}}\'; or set'
                " server_weights to folder"
            ) from None
        return client
