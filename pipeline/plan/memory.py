"""Memory of a stage by role and by what it is doing, in bytes on each process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.config.losses import ONCE_EACH, loss_names
from pipeline.plan import formulas
from pipeline.plan.rewards import loaded_rewards, trained_classifier
from pipeline.plan.setting import Setting

Roles = dict[str, float]
# Bytes a token and unit of width that one layer holds in a pass without gradients.
_TRANSIENT = 24
# Numbers of each logit that are there at once: scoring two models; learning with a trained head,
# with a frozen one, and with an entropy bonus beside (the same as docs/scaling.md's).
_TRAINED_HEAD, _FROZEN_HEAD, _WITH_ENTROPY = 16, 12, 20
_DRAWN = 10  # bytes of each logit where tokens are drawn
# TRL's fused head computes the logits of so many vocabulary entries at a time, for all tokens.
_TILE = {True: 1024, False: 32_768}
_MOMENTARY = ("KV cache", "logits", "activations", "copies for autocast")
_CACHED_TRUNK = 4 * 2**30  # bytes that DPO over a frozen trunk keeps at most


@dataclass(frozen=True)
class Phase:
    """What a stage holds while it does one thing.

    Attributes:
        name: such as ``sampling``. roles: bytes by what they are for.
    """

    name: str
    roles: Roles

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.roles.values())


@dataclass(frozen=True)
class Need:
    """What a stage needs on each process.

    Attributes:
        stage: its name in the experiment. method: its section.
        phases: one after another; the largest is what has to fit.
        sequence: tokens of the longest sequence. positions: that the model was made for.
        rough: why parts of it are not reckoned closely; a few words each.
    """

    stage: str
    method: str
    phases: tuple[Phase, ...]
    sequence: int
    positions: int | None
    rough: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)


def need_of(stage: str, setting: Setting) -> Need:
    """The memory of a stage: `Phase` by `Phase`."""
    base, notes = {"process": setting.machine.base}, []
    longest = setting.lengths.sequence
    if setting.section in ("sft",):
        longest = _cut(setting, setting.lengths.text)
    made = _BY_SECTION.get(setting.section, _by_trl)(setting)
    phases = tuple(Phase(p.name, base | {k: v for k, v in p.roles.items() if v > 0}) for p in made)
    if setting.section in _RECKONED:
        measured = setting.kept(1, longest).measured
        if not measured:
            notes.append("activations by the published formula: the model's code reads numbers")
    positions = None if setting.section == "reward" else setting.policy.positions
    return Need(stage, setting.section, phases, longest, positions, tuple(notes))


def _cut(setting: Setting, length: int) -> int:
    """Tokens of a text as the trainer cuts it."""
    limit = setting.argument("max_length")
    return min(length, int(limit)) if limit else length


# -- what is there all the time --------------------------------------------------------------------


def _held(setting: Setting, copied: float, stepped: bool = True) -> Roles:
    """Weights, reference and Adam of a policy in training, gradients apart."""
    policy, count = setting.policy, setting.machine.count
    roles = formulas.states(policy.trained, policy.frozen_bytes, copied)
    del roles["gradients"]
    if not stepped:
        del roles["Adam"]
    if setting.split:
        return {role: size / count for role, size in roles.items()}
    return roles


def _gradients(setting: Setting) -> Roles:
    """Of all trained weights; under DDP a second time, in the buckets that are sent."""
    size = formulas.GRADIENT * setting.policy.trained
    if setting.split:
        return {"gradients": size / setting.machine.count}
    buckets = size if setting.machine.count > 1 else 0.0
    return {"gradients": size, "buckets of DDP": buckets}


def _in_flight(setting: Setting) -> Roles:
    """What FSDP2 has gathered at a time: two layers, embeddings and head."""
    policy = setting.policy
    size = 2 * (2 * policy.layer + policy.embeddings)
    return {"gathered by FSDP2": size} if setting.split else {}


def _passes(setting: Setting, rows: int, length: int) -> Roles:
    """What a forward pass leaves for the backward pass of ``rows`` sequences."""
    policy, kept = setting.policy, setting.kept(rows, length)
    activations = kept.activations
    if setting.argument("gradient_checkpointing"):
        tokens, stream = rows * length, setting.dtype.itemsize
        a_token = kept.layer / max(1, tokens)
        activations = formulas.recomputed_activations(
            tokens, policy.width, policy.upper, a_token, stream
        )
    return {"activations": activations, "copies for autocast": kept.casts}


def _one_layer(setting: Setting, rows: int, length: int) -> float:
    """What a pass without gradients holds: the layer at hand."""
    heads = int(getattr(setting.config.get_text_config(), "num_attention_heads", 1) or 1)
    square = 6.0 * heads * length if setting.attention(length, rows) == "eager" else 0.0
    return rows * length * (_TRANSIENT * setting.policy.width + square)


def _chunk(setting: Setting) -> int:
    """Tokens whose logits exist at once in PPO and in DPO over the trunk."""
    given = setting.argument("logits_chunk") if setting.section == "ppo" else None
    return int(given or (128 if setting.machine.device.is_processor else 2048))


def _learnt_logits(setting: Setting, tokens: int) -> Roles:
    """The chunk's logits, and the gradient of a trained head beside the sum of the others."""
    policy = setting.policy
    each = _TRAINED_HEAD if policy.trains_head else _FROZEN_HEAD
    if setting.section == "ppo" and float(setting.argument("entropy_coef") or 0) > 0:
        each = max(each, _WITH_ENTROPY)
    size = formulas.logits(min(tokens, _chunk(setting)), policy.vocabulary, each)
    return {"logits": size + _head_gradient(setting)}


def _head_gradient(setting: Setting) -> float:
    policy = setting.policy
    return 4.0 * policy.vocabulary * policy.width if policy.trains_head else 0.0


# -- sampling --------------------------------------------------------------------------------------


def _sampling(setting: Setting, rows: int, held: Roles) -> Phase:
    """Completions of ``rows`` prompts at once, by the policy whole on each process."""
    policy, lengths = setting.policy, setting.lengths
    served = setting.section == "ppo" and setting.argument("generation") == "vllm"
    roles = dict(held)
    if served:
        return Phase("sampling", roles)
    if setting.split:
        roles["policy gathered whole"] = 2.0 * policy.parameters
    roles["KV cache"] = formulas.cache(rows * lengths.sequence, policy.kv_token)
    roles["logits"] = formulas.logits(rows, policy.vocabulary, _DRAWN)
    roles["activations"] = _one_layer(setting, rows, lengths.prompt)
    if policy.trains_head and setting.dtype.itemsize == 2:  # cast at every step
        roles["copies for autocast"] = 2.0 * policy.vocabulary * policy.width
    return Phase("sampling", roles)


# -- the stages ------------------------------------------------------------------------------------


def _sft(setting: Setting) -> Iterator[Phase]:
    """TRL's SFT: every token of the batch through the fused head."""
    held = _held(setting, 0.0)
    if setting.section == "sft" and setting.experiment.sft.skip:
        yield Phase("loading", {"frozen weights": setting.policy.frozen_bytes})
        return
    rows, length = setting.rows, _cut(setting, setting.lengths.text)
    if setting.section != "sft":  # learns from samples of π_ref
        length = setting.lengths.sequence
        batch = setting.experiment.generation.batch_size
        yield _sampling(setting, batch, _held(setting, 0.0, stepped=False))
    yield from _updates(
        setting, held, _passes(setting, rows, length) | _fused(setting, rows, length)
    )


def _fused(setting: Setting, rows: int, length: int) -> Roles:
    """TRL's fused head: a tile of the vocabulary for all tokens, float32, three numbers a logit."""
    tile = min(setting.policy.vocabulary, _TILE[setting.machine.device.is_processor])
    return {"logits": 12.0 * rows * length * tile + _head_gradient(setting)}


def _updates(
    setting: Setting, held: Roles, passes: Roles, before: Sequence[Phase] = ()
) -> Iterator[Phase]:
    """Learning from a microbatch, the optimizer's step, and the result's way to the disk.

    The backward pass frees activations as it makes gradients, so without accumulation the two are
    never whole side by side. A processor's allocator keeps what the phases ``before`` held for a
    moment, in pieces too small for what comes after (measured).
    """
    if setting.machine.device.is_processor:
        moments = (p.roles[role] for p in before for role in _MOMENTARY if role in p.roles)
        held = held | {"freed, not returned": sum(moments)}
    gradients, flight = _gradients(setting), _in_flight(setting)
    beside = gradients if setting.accumulates else {}
    yield Phase("learning", held | beside | passes | flight)
    yield Phase("stepping", held | gradients)
    if setting.policy.adapted and setting.model.save != "adapter":
        # Adapters are merged in float32, in the place of the weights that they are over.
        merged = held | {"frozen weights": 0.0, "merged weights": 4.0 * setting.policy.parameters}
        yield Phase("saving", merged)


def _ppo(setting: Setting) -> Iterator[Phase]:
    """Rollout and update; the reward models lie beside the policy all the time."""
    policy, lengths, rows = setting.policy, setting.lengths, setting.rows
    copied = 0 if policy.adapted else policy.trained
    held = _held(setting, copied)
    hidden = float(setting.argument("value_head_hidden") or 1.0)
    held["value head"] = formulas.trained_states(formulas.value_head(policy.width, hidden))
    held["reward models"] = loaded_rewards(setting)
    minibatches = int(setting.argument("num_mini_batches") or 1)
    accumulated = int(setting.argument("gradient_accumulation_steps") or 1)
    rollout = rows * minibatches * accumulated
    given = setting.argument("generation_batch_size") or setting.experiment.generation.batch_size
    sampling = _sampling(setting, min(rollout, int(given)), held)
    yield sampling
    size, length = setting.dtype.itemsize, lengths.sequence
    budget = setting.argument("microbatch_tokens")
    if budget:  # as many of the longest as make so many tokens, one at least
        rows = max(1, min(rollout // minibatches, int(budget) // length))
    kept = dict.fromkeys(("rollout's trunk", "reference's states"), 0.0)
    if policy.upper < policy.layers and setting.argument("cache_trunk"):
        kept["rollout's trunk"] = float(rollout * length * policy.width * size)
    exact = setting.argument("kl_estimator") == "exact" and setting.experiment.beta > 0
    if exact:
        kept["reference's states"] = float(rollout * lengths.response * policy.width * 4)
    tokens = rows * lengths.response
    scored = formulas.logits(min(tokens, _chunk(setting)), policy.vocabulary)
    states = 2.0 * 4 * rows * length * policy.width
    one = _one_layer(setting, rows, length) + states
    momentary = {"logits": scored, "activations": one} | _in_flight(setting)
    scoring = Phase("scoring", held | kept | momentary)
    yield scoring
    passes = _passes(setting, rows, length)
    passes["activations"] += rows * length * policy.width * size if kept["rollout's trunk"] else 0
    passes |= _learnt_logits(setting, tokens)
    yield from _updates(setting, held | kept, passes, (sampling, scoring))


def _dpo(setting: Setting) -> Iterator[Phase]:
    """Pairs over what is frozen; own pairs and other losses are TRL's."""
    own = setting.experiment.data.preferences_name is not None
    names = loss_names({"loss_type": setting.argument("loss_type")})
    if own or setting.split or names not in ONCE_EACH:
        yield from _by_trl(setting)
        return
    policy, lengths, pairs = setting.policy, setting.lengths, setting.experiment.pairs
    batch = setting.experiment.generation.batch_size
    before = _held(setting, 0.0, stepped=False)
    sampling = _sampling(setting, batch, before)
    yield Phase("sampling", sampling.roles | {"reward models": loaded_rewards(setting)})
    # Groups too: a batch has the completions of pairs of two.
    held, rows, length = _held(setting, 0.0), 2 * setting.rows, lengths.sequence
    if policy.upper < policy.layers:
        completions = pairs.groups(max(1, lengths.prompts)) * pairs.samples_per_prompt
        states = completions * lengths.sequence_mean * policy.width * setting.dtype.itemsize
        held["cached trunk"] = min(states, _CACHED_TRUNK)
    passes = _passes(setting, rows, length) | _learnt_logits(setting, rows * lengths.response)
    yield from _updates(setting, held, passes, (sampling,))


def _by_trl(setting: Setting) -> Iterator[Phase]:
    """TRL's trainers: a reference where the method has one, all layers for every row."""
    policy, lengths, section = setting.policy, setting.lengths, setting.section
    referred = section not in ("orpo", "cpo", "simpo") and not policy.adapted
    held = _held(setting, policy.trained if referred else 0.0)
    rows = setting.rows * (2 if section in ("dpo", "orpo", "cpo", "simpo") else 1)
    length = _cut(setting, lengths.sequence)
    sampled = setting.experiment.data.preferences_name is None
    sampling: list[Phase] = []
    if sampled or section in ("rloo", "grpo"):
        before = held if section in ("rloo", "grpo") else _held(setting, 0.0, stepped=False)
        batch = setting.experiment.generation.batch_size
        sampling = [_sampling(setting, batch, before)]
        yield Phase("sampling", sampling[0].roles | {"reward models": loaded_rewards(setting)})
    passes = _passes(setting, rows, length)
    if section in ("orpo", "cpo", "simpo"):  # their logits are whole
        passes |= {"logits": formulas.logits(rows * length, policy.vocabulary, _TRAINED_HEAD)}
    else:
        passes |= _fused(setting, rows, length)
    yield from _updates(setting, held, passes, sampling)


def _reward(setting: Setting) -> Iterator[Phase]:
    """The largest of the models that the reward stage trains."""
    classifier = trained_classifier(setting)
    if classifier is None:
        yield Phase("asking", {"reward models": loaded_rewards(setting)})
        return
    yield Phase("learning", classifier)


def _compare(setting: Setting) -> Iterator[Phase]:
    """A policy beside the reference, both as they are saved, and the rewards."""
    policy, lengths = setting.policy, setting.lengths
    size = 4 if policy.adapted else setting.dtype.itemsize
    whole = float(policy.parameters * size)
    held = {"policy": whole, "reference": whole, "reward models": loaded_rewards(setting, True)}
    rows = setting.experiment.generation.batch_size
    sampling = _sampling(setting.with_(split=False), rows, held)
    yield sampling
    scored = formulas.logits(_chunk(setting), policy.vocabulary)
    one = _one_layer(setting, rows, lengths.sequence)
    states = 2.0 * size * rows * lengths.sequence * policy.width
    yield Phase("scoring", held | {"logits": scored, "activations": one + states})


_BY_SECTION: dict[str, Callable[[Setting], Iterator[Phase]]] = {
    "sft": _sft,
    "rejection": _sft,
    "reweighted": _sft,
    "ppo": _ppo,
    "dpo": _dpo,
    "reward": _reward,
    "compare": _compare,
}
_RECKONED = ("sft", "ppo", "dpo")
