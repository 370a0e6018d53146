"""A server on loopback that answers as vLLM does, of a toy model, and misbehaves as it is told."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

NAME = "policy"


class Refusal(Exception):
    """A status and vLLM's words."""

    def __init__(self, status: int, words: str | None) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class StandIn:
    """vLLM's interface over a toy model.

    Attributes:
        window: tokens of a sequence.
        lora, development: whether it was started so that it takes adapters, or weights.
        keeps_old: it says yes to new weights and answers from those that it had.
        raw: it tells log-probabilities at temperature 1.
        trouble: called with the path and the body of each request; what it returns is sent instead
            of an answer: a status, or "drop" to hang up, or seconds (a float) to wait first.
        asked: paths and bodies, in the order of their arrival.
    """

    def __init__(self, model: nn.Module) -> None:
        self.base = copy.deepcopy(model).eval()
        self.window, self.lora, self.development = 64, True, True
        self.keeps_old = self.raw = False
        self.trouble: Callable[[str, dict[str, Any]], Any] = lambda path, body: None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()
        self.start_anew()
        kind = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})
        self._server = kind(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def start_anew(self) -> None:
        """As after a kill: with the weights that it serves, and no others."""
        self.adapters: dict[str, nn.Module] = {}
        self.own, self.version = self.base, "default"

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def completions(self) -> list[dict[str, Any]]:
        """The bodies of requests for completions, those of the probe left out."""
        return [
            body for path, body in self.asked
            if path == "/v1/completions" and "logprob_token_ids" not in body
        ]  # fmt: skip

    # -- answers ---------------------------------------------------------------------------------

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            own = {"id": NAME, "parent": None, "max_model_len": self.window}
            return {"data": [own, *({"id": name, "parent": NAME} for name in self.adapters)]}
        if path == "/v1/completions":
            return self._complete(body)
        if self.lora and path == "/v1/load_lora_adapter":
            return self._load_adapter(body["lora_name"], Path(body["lora_path"]))
        if self.lora and path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"], None)
            return b"Success"
        if self.development and path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            if not self.keeps_old:
                folder = body["kwargs"]["weights_path"]
                self.own = AutoModelForCausalLM.from_pretrained(folder).eval()
            return {"results": [None]}
        if self.development and path == "/reset_prefix_cache":
            return {"success": True}
        if self.development and path == "/update_weight_version":
            self.version = body["new_version"]
            return {"success": True}
        if self.development and path == "/weight_info":
            return {"weight_version": self.version}
        raise Refusal(404, None)

    def _load_adapter(self, name: str, folder: Path) -> bytes:
        if name in self.adapters:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            raise Refusal(404, f"No adapter found for {folder}")
        if json.loads((folder / "adapter_config.json").read_text())["r"] > 16:
            raise Refusal(500, "LoRA rank 32 is greater than max_lora_rank 16.")
        if self.keeps_old and self.adapters:
            self.adapters[name] = next(iter(self.adapters.values()))
        else:
            made = PeftModel.from_pretrained(copy.deepcopy(self.base), str(folder))
            self.adapters[name] = made.eval()
        return b"Success: LoRA adapter added successfully."

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> Any:
        name = body["model"]
        if name != NAME and name not in self.adapters:
            raise Refusal(404, f"The model `{name}` does not exist.")
        model = self.own if name == NAME else self.adapters[name]
        (prompt,), tokens, told, top = body["prompt"], [], [], []
        generator = torch.Generator().manual_seed(body["seed"])
        reason = "length"
        for _ in range(body["max_tokens"]):
            with self._lock:
                logits = model(torch.tensor([prompt + tokens])).logits[0, -1].float()
            logps = (logits / body["temperature"]).log_softmax(-1)
            token = int(torch.multinomial(logps.exp(), 1, generator=generator))
            if self.raw:
                logps = logits.log_softmax(-1)
            tokens.append(token)
            told.append(float(logps[token]))
            asked = body.get("logprob_token_ids", [])
            top.append({f"token_id:{t}": float(logps[t]) for t in [token, *asked]})
            if token in body.get("stop_token_ids", []):
                reason = "stop"
                break
        logprobs = {"token_logprobs": told, "top_logprobs": top}
        choice = {"token_ids": tokens, "logprobs": logprobs, "finish_reason": reason}
        return {"choices": [{**choice, "prompt_token_ids": prompt}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay

            def do_GET(self) -> None:  # noqa: N802
                self._reply({})

            def do_POST(self) -> None:  # noqa: N802
                self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _reply(self, body: dict[str, Any]) -> None:
                with standin._lock:
                    standin.asked.append((self.path, body))
                    trouble = standin.trouble(self.path, body)
                if trouble == "drop":
                    self.close_connection = True
                    return
                if isinstance(trouble, float):
                    time.sleep(trouble)
                try:
                    if isinstance(trouble, int):
                        raise Refusal(trouble, "trouble")
                    self._send(200, standin.answer(self.path, body))
                except Refusal as refusal:
                    words = refusal.words
                    error: Any = {"detail": "Not Found"}
                    if words is not None:
                        error = {"error": {"message": words, "code": refusal.status}}
                    self._send(refusal.status, error)

            def _send(self, status: int, said: Any) -> None:
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the other side has gone
                    return

            def log_message(self, *_: object) -> None:
                pass

        return Handler
