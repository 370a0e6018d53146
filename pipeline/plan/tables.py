"""The tables of docs/scaling.md: memory, traffic and time of PPO at 1B, 8B and 70B.

What one rollout is, the models and the methods are fixed here; every number comes out of
`formulas.py` and of the H100 that `devices.py` knows. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.plan import formulas
from pipeline.plan.devices import DEVICES

GB = 1e9

# One rollout, the same for every model.
ROWS, PROMPT, RESPONSE = 512, 512, 512
EPOCHS, MINIBATCHES = 4, 4
MICROBATCH = 4  # completions that one GPU learns from at once
SAMPLED_AT_ONCE = 64  # completions that one GPU generates at once, at most
LOGITS_CHUNK = 2048  # tokens whose logits exist at once on a GPU
LORA_RANK = 16
UPPER = 4  # a frozen trunk leaves the upper 1/UPPER of the layers to be trained

_H100 = DEVICES["h100"]
INFINIBAND = 50e9  # one NDR port, bytes a second, one way
CARD = 80 * GB  # of the data sheet
PER_NODE = 8


@dataclass(frozen=True)
class Model:
    """A Llama 3 architecture; the sizes are those of the published configurations."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        attention = 2 * self.width**2 + 2 * self.width * self.kv_width
        return attention + 3 * self.width * self.inner + 2 * self.width

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + (1 if self.tied else 2) * self.embedding + self.width

    @property
    def adapters(self) -> int:
        """LoRA parameters on all linear layers: rank × (in + out) each."""
        d, k, f = self.width, self.kv_width, self.inner
        return self.layers * LORA_RANK * (2 * (d + d) + 2 * (d + k) + 3 * (d + f))

    @property
    def value_head(self) -> int:
        return formulas.value_head(self.width)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values, bfloat16."""
        return int(formulas.kv_token(self.layers, self.kv_width))


MODELS = (
    Model("1B", 16, 2048, 8192, 32, 8, 128_256, tied=True),
    Model("8B", 32, 4096, 14_336, 32, 8, 128_256, tied=False),
    Model("70B", 80, 8192, 28_672, 64, 8, 128_256, tied=False),
)
METHODS = ("full", "LoRA", "frozen trunk")


@dataclass(frozen=True)
class Plan:
    """A model trained by a method: what it keeps, moves and computes."""

    model: Model
    method: str

    @property
    def trained(self) -> int:
        m = self.model
        upper = m.layers // UPPER * m.layer + m.width
        return {"full": m.parameters, "LoRA": m.adapters, "frozen trunk": upper}[self.method]

    @property
    def stored_frozen(self) -> int:
        """Frozen parameters, kept in bfloat16."""
        m = self.model
        if self.method == "full":
            return 0
        return m.parameters if self.method == "LoRA" else m.parameters - self.trained

    @property
    def reference(self) -> int:
        """Parameters that the reference has of its own: none under adapters."""
        return 0 if self.method == "LoRA" else self.trained

    def states(self) -> dict[str, float]:
        """Bytes of what FSDP2 splits over the processes and DDP repeats on each."""
        return formulas.states(self.trained, 2 * self.stored_frozen, self.reference)

    @property
    def value_states(self) -> float:
        return formulas.trained_states(self.model.value_head)

    @property
    def activations(self) -> float:
        """One microbatch with every layer recomputed, and the chunk of logits."""
        m, tokens = self.model, MICROBATCH * (PROMPT + RESPONSE)
        layers = m.layers // UPPER if self.method == "frozen trunk" else m.layers
        whole = formulas.LAYER_ACTIVATIONS * m.width
        return formulas.recomputed_activations(tokens, m.width, layers, whole) + self.logits

    @property
    def logits(self) -> float:
        """Four float32 numbers a logit: what scoring both models takes, and a trained LM head."""
        return formulas.logits(LOGITS_CHUNK, self.model.vocabulary)

    def cache(self, processes: int) -> float:
        rows = min(SAMPLED_AT_ONCE, -(-ROWS // processes))
        return formulas.cache(rows * (PROMPT + RESPONSE), self.model.kv_bytes)

    @property
    def in_flight(self) -> float:
        """Bytes that FSDP2 has gathered at a time: two layers, embeddings and LM head."""
        m = self.model
        return 2 * (2 * m.layer + (1 if m.tied else 2) * m.embedding)

    def learning(self, processes: int, split: bool) -> float:
        """Bytes on one GPU at the peak of an update."""
        states = sum(self.states().values()) / (processes if split else 1)
        return states + self.value_states + self.activations + (self.in_flight if split else 0)

    def sampling(self, processes: int, split: bool) -> float:
        """Bytes on one GPU while it generates, the whole policy in bfloat16 at hand."""
        states = sum(self.states().values()) / (processes if split else 1)
        whole = 2 * self.model.parameters if split else 0
        return states + self.value_states + whole + self.cache(processes)

    def processes(self, split: bool, sampling: bool) -> int | None:
        """The smallest power of two of GPUs that this fits on; None up to 1,024."""
        need = self.sampling if sampling else self.learning
        for exponent in range(1 if split else 0, 11):
            if need(2**exponent, split) <= formulas.USABLE * CARD:
                return 2**exponent
        return None

    # -- traffic: bytes that one GPU sends ---------------------------------------------------------

    def all_reduce(self, processes: int) -> float:
        return formulas.all_reduce(self.trained, processes)

    def gathers(self, processes: int) -> float:
        """Of one microbatch's forward and backward pass; a cached trunk is not run, so not sent."""
        m = self.model
        upper = self.trained + (1 if m.tied else 2) * m.embedding
        sent = upper if self.method == "frozen trunk" else m.parameters
        return formulas.gathers(sent, processes)

    def reduce_scatter(self, processes: int) -> float:
        return formulas.reduce_scatter(self.trained, processes)

    def microbatches(self, processes: int) -> int:
        """Of one process in one update."""
        return max(1, ROWS // MINIBATCHES // processes // MICROBATCH)

    def update_traffic(self, processes: int, split: bool) -> float:
        if not split:
            return self.all_reduce(processes)
        once = self.gathers(processes) + self.reduce_scatter(processes)
        return self.microbatches(processes) * once

    @property
    def weight_sync(self) -> float:
        """To a generation server, once a rollout."""
        return 2 * (self.model.adapters if self.method == "LoRA" else self.trained)

    # -- seconds of one rollout --------------------------------------------------------------------

    def seconds(self, processes: int) -> dict[str, float]:
        """By phase, from the peaks and the shares assumed; the reward is not in it."""
        n, rows = self.model.parameters, ROWS / processes
        tokens = rows * (PROMPT + RESPONSE)
        speed, cards = formulas.COMPUTE_SHARE * _H100.flops, self.tensor_parallel
        memory = formulas.MEMORY_SHARE * _H100.bandwidth
        together = min(SAMPLED_AT_ONCE, rows) * cards
        cached = together * (PROMPT + RESPONSE / 2) * self.model.kv_bytes
        step = formulas.decoding_step(2 * n, cached, together, n, speed, memory) / cards
        return {
            "sample": rows * cards / together * RESPONSE * step + 2 * n * rows * PROMPT / speed,
            "score": 2 * 2 * n * tokens / speed,
            "update": EPOCHS * tokens * self.flops_per_token / speed,
        }

    @property
    def tensor_parallel(self) -> int:
        """Cards over which a generation server splits the weights, to half a card each."""
        cards = 1
        while 2 * self.model.parameters / cards > CARD / 2:
            cards *= 2
        return cards

    @property
    def flops_per_token(self) -> float:
        """Of an update: forward, recomputation, gradients of activations and of weights."""
        n = self.model.parameters
        head = self.model.embedding * RESPONSE / (PROMPT + RESPONSE)
        if self.method == "full":
            return formulas.flops_per_token(n, n, n, n)
        if self.method == "LoRA":
            return formulas.flops_per_token(n, n, n, 0)
        upper = self.trained
        return formulas.flops_per_token(upper + head, upper, upper + head, upper)

    def traffic_seconds(self, processes: int, split: bool, ports: int = PER_NODE) -> float:
        """``ports``: a node's InfiniBand ports, which its GPUs' rings go out by together."""
        within = _H100.link
        link = within if processes <= PER_NODE else min(within, ports * INFINIBAND)
        sent = EPOCHS * MINIBATCHES * self.update_traffic(processes, split)
        return sent / (formulas.LINK_SHARE * link)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def gigabytes(value: float) -> str:
    """Two digits, or whole gigabytes from ten on."""
    return f"{value / GB:,.0f}" if value >= 10 * GB else f"{value / GB:.2g}"


def duration(value: float) -> str:
    """Seconds in two digits, or whole ones from ten on."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


PLANS = [Plan(model, method) for model in MODELS for method in METHODS]


def parameter_table() -> str:
    header = ("model", "layers × width", "parameters", "LoRA", "frozen trunk", "value head", "KV")
    return table(
        header,
        [
            (
                m.name,
                f"{m.layers} × {m.width}",
                f"{m.parameters / 1e9:.2f}e9",
                f"{m.adapters / 1e6:.0f}e6",
                f"{Plan(m, 'frozen trunk').trained / 1e9:.2f}e9",
                f"{m.value_head / 1e6:.0f}e6",
                f"{m.kv_bytes / 1000:.0f} kB",
            )
            for m in MODELS
        ],
    )


def memory_table() -> str:
    states = tuple(PLANS[0].states())
    header = ("model", "method", *states, "sum", "value head", "activations", "of it logits", "KV")
    return table(
        header,
        [
            (
                plan.model.name,
                plan.method,
                *(gigabytes(value) for value in plan.states().values()),
                f"**{gigabytes(sum(plan.states().values()))}**",
                gigabytes(plan.value_states),
                gigabytes(plan.activations),
                gigabytes(plan.logits),
                gigabytes(plan.cache(PER_NODE)),
            )
            for plan in PLANS
        ],
    )


def _fit(plan: Plan, split: bool, sampling: bool) -> str:
    processes = plan.processes(split, sampling)
    return "never" if processes is None else str(processes)


def cards_table() -> str:
    header = ("model", "method", "DDP", "FSDP2 learns", "FSDP2 samples", "GB a card, of how many")
    rows = []
    for plan in PLANS:
        whole = max(plan.learning(PER_NODE, False), plan.sampling(PER_NODE, False))
        count = plan.processes(True, False) or 0
        ddp = "yes" if whole <= formulas.USABLE * CARD else "no"
        use = f"{gigabytes(plan.learning(count, True))} of {count}"
        fits = (_fit(plan, True, False), _fit(plan, True, True))
        rows.append((plan.model.name, plan.method, f"{ddp} ({gigabytes(whole)})", *fits, use))
    return table(header, rows)


def traffic_table() -> str:
    header = ("model", "method", "DDP all-reduce", "FSDP2 gathers", "reduce-scatter")
    header += ("FSDP2 an update", "weights to a server")
    return table(
        header,
        [
            (
                plan.model.name,
                plan.method,
                gigabytes(plan.all_reduce(PER_NODE)),
                gigabytes(plan.microbatches(PER_NODE) * plan.gathers(PER_NODE)),
                gigabytes(plan.microbatches(PER_NODE) * plan.reduce_scatter(PER_NODE)),
                gigabytes(plan.update_traffic(PER_NODE, True)),
                gigabytes(plan.weight_sync),
            )
            for plan in PLANS
        ],
    )


def time_table() -> str:
    header = ("model", "method", "GPUs", "by", "sample", "score", "update", "traffic", "limit")
    header += ("traffic by one port",)
    rows = []
    for plan in PLANS:
        split = max(plan.learning(8, False), plan.sampling(8, False)) > formulas.USABLE * CARD
        for count in (8, 16, 64):
            if count < (plan.processes(split, False) or 10**9):
                continue
            seconds, moved = plan.seconds(count), plan.traffic_seconds(count, split)
            slowest = max(seconds["sample"], seconds["score"] + seconds["update"], moved)
            names = {seconds["sample"]: "HBM (decoding)", moved: "links"}
            limit = names.get(slowest, "FLOPs")
            if limit == "links":
                limit = "NVLink" if count <= PER_NODE else "InfiniBand"
            shown = [duration(value) for value in (*seconds.values(), moved)]
            one = duration(plan.traffic_seconds(count, split, 1)) if count > PER_NODE else ""
            by = "FSDP2" if split else "DDP"
            rows.append((plan.model.name, plan.method, count, by, *shown, limit, one))
    return table(header, rows)


def tables() -> str:
    """All tables under their headings, as docs/scaling.md quotes them."""
    updates = EPOCHS * MINIBATCHES
    parts = {
        "Sizes": parameter_table(),
        "Memory by role, GB in all": memory_table(),
        "Cards of 80 GB": cards_table(),
        f"Gigabytes that one of {PER_NODE} GPUs sends in an update": traffic_table(),
        f"Seconds of a rollout of {ROWS} completions and its {updates} updates": time_table(),
    }
    return "\n\n".join(f"### {heading}\n\n{text}" for heading, text in parts.items())
