"""What a person's data and the tokenizer do not allow together, told before any stage starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import cast

from transformers import PreTrainedTokenizerBase

from common.words import first_line
from pipeline.compare import fluency
from pipeline.config import PAIRWISE, Experiment
from pipeline.config.arguments import target
from pipeline.config.choices import on_own_pairs, ppo_evaluates
from pipeline.config.stages import find_stage
from pipeline.data.comparisons import divided
from pipeline.data.forms import one_of_each, sample
from pipeline.data.preferences import Pair, read_pairs
from pipeline.data.records import Demonstration, Messages, Prompt
from pipeline.data.splits import ExperimentData, load_data
from pipeline.data.tally import tell
from pipeline.data.tokenizer import load_tokenizer
from pipeline.errors import UserError
from pipeline.lm.compiling import check_liger
from pipeline.lm.loading import check_loading
from pipeline.lm.scored import check_columns
from pipeline.stages import elsewhere
from pipeline.stages.reward_sources import PARTS, source_reward, sources_of
from pipeline.stages.tokens import learnt_tokens

_COUNTED = 2000  # rows of a large data set by which the share of long ones is told


def check(experiment: Experiment, stages: Sequence[str]) -> None:
    """Read what ``stages`` will read, and try the tokenizer on it.

    The project's own texts are not read: nothing about them is to be found out.

    Raises:
        UserError: A file cannot be used, or not with this tokenizer or these limits; or a
            checkpoint from elsewhere cannot be measured.
    """
    section, todo = experiment.data, set(stages)
    policies = [experiment.of(name) for name in experiment.methods() if name in todo]
    check_loading(experiment.model)
    trained = [(experiment, name) for name in ("sft", "reward") if name in todo]
    trained += [(view, view.stage(str(view.policy)).section) for view in policies]
    for view, name in trained:
        check_liger(view.trainer_args(name), name)
    on_own = [view for name, view in on_own_pairs(experiment).items() if name in todo]
    own = not (section.dataset_name == "toy" or section.dataset_name.startswith("embedded:"))
    prompts: list[Prompt] = []  # with columns of their own
    asks = len(policies) > len(on_own) or "compare" in todo
    if (asks or todo & {"sft", "reward"}) and (own or section.prompts_name):
        data = load_data(experiment, labels="reward" in todo)
        check_data(experiment, data, "sft" in todo)
        prompts = [*data.eval_prompts, *data.validation_prompts, *one_of_each(data.train_prompts)]
    if asks:
        _check_reward(experiment, prompts)
    learnt = "reward" in todo and PAIRWISE in experiment.reward.sources()
    if learnt and section.preferences_name:
        learns = read_pairs(section.preferences_name, section.column_names(), section.train_split)
        divided(learns, experiment.data_seed, section.preferences_name)
    if "compare" in todo:
        fluency.check(experiment)
    for view in on_own:
        data_of = view.data
        assert data_of.preferences_name is not None
        read = read_pairs(data_of.preferences_name, data_of.column_names(), data_of.train_split)
        check_pairs(view, read, load_tokenizer(experiment.model))
    if "compare" in todo and experiment.compare.policies:
        elsewhere.check(experiment, load_data(experiment, labels=False))


def _check_reward(experiment: Experiment, prompts: Sequence[Prompt]) -> None:
    """A function of the user's can be loaded, and finds its columns with the prompts.

    Raises:
        UserError: It is not there, or asks for what the prompts do not have.
    """
    for part in PARTS:
        for place, source in sources_of(experiment, part).items():
            if source.kind() in ("function", "rules"):
                check_columns(source_reward(experiment, part, place, source), prompts)


def check_data(experiment: Experiment, data: ExperimentData, sft: bool = True) -> None:
    """Try the tokenizer on prompts and, where ``sft`` trains on them, on demonstrations."""
    section = experiment.data
    tokenizer = load_tokenizer(experiment.model)
    if section.prompts_name:
        validation = data.validation_prompts if ppo_evaluates(experiment) else []
        prompts = [*data.eval_prompts, *validation, *one_of_each(data.train_prompts)]
        check_template(experiment, tokenizer, "data.prompts_name", ((p, []) for p in prompts))
    made: Sequence[Demonstration] = []
    if len(data.demonstrations) and isinstance(data.demonstrations[0], Demonstration):
        made = one_of_each(cast("Sequence[Demonstration]", data.demonstrations))
    check_template(
        experiment, tokenizer, "data.dataset_name", ((d.prompt, d.completion) for d in made)
    )
    if sft:
        _check_loss(experiment, made, tokenizer)
        _check_demonstration_lengths(experiment, data.demonstrations, tokenizer)


def check_template(
    experiment: Experiment,
    tokenizer: PreTrainedTokenizerBase,
    key: str,
    talks: Iterable[tuple[Prompt, Prompt]],
) -> None:
    """Write a conversation of each order of roles with the chat template; texts are let by.

    Raises:
        UserError: There is no template, or it refuses such a conversation or leaves out its
            system message.
    """
    model = experiment.model.model_name_or_path
    name = getattr(experiment.data, key.removeprefix("data."))
    tried: set[tuple[str, ...]] = set()
    for prompt, answer in talks:
        messages = [] if isinstance(prompt, str) else [*prompt, *answer]
        roles = tuple(message["role"] for message in messages)  # type: ignore[index]
        if not messages or roles in tried:
            continue
        tried.add(roles)
        if tokenizer.chat_template is None:
            raise UserError(
                f"{key}: {name} holds conversations, but the tokenizer of {model!r} has no chat "
                "template: use plain texts, or a model with a template"
            )
        shown = f"the conversation {_quoted(messages)} (roles {', '.join(roles)})"  # type: ignore
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))  # type: ignore
        # A template is a program of its own: it raises what it likes.
        except Exception as error:
            raise UserError(
                f"{key}: the chat template of {model!r} refuses {shown}: {first_line(error)}: "
                "change these messages, or take a model whose template allows them"
            ) from error
        lost = [m["content"] for m in messages if m["role"] == "system"]  # type: ignore
        if any(content.strip() not in text for content in lost):
            raise UserError(
                f"{key}: the chat template of {model!r} leaves out the system message of {shown}: "
                "move it into the user's first message"
            )


def _quoted(messages: Messages) -> str:
    return f"{messages[0]['content']!r:.40}"


def _check_loss(
    experiment: Experiment, made: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase
) -> None:
    """The switches that choose what SFT's loss is on must fit the demonstrations."""
    from pipeline.stages.trl_compat import marks_answers  # TRL takes seconds to import

    given, name = experiment.trainer_args("sft"), experiment.data.dataset_name
    talks = bool(made) and not isinstance(made[0].prompt, str)
    if given.get("completion_only_loss") and not made:
        raise UserError(f"sft.completion_only_loss: {name} holds plain texts, without a prompt")
    if not given.get("assistant_only_loss"):
        if talks and any(_turns(item) > 1 for item in made):
            tell(
                f"{name}: SFT learns the last answer of each conversation; "
                "sft.assistant_only_loss=true learns every answer"
            )
        return
    if not talks:
        raise UserError(f"sft.assistant_only_loss: {name} holds no conversations")
    if not marks_answers(tokenizer):
        raise UserError(
            "sft.assistant_only_loss: the chat template of "
            f"{experiment.model.model_name_or_path!r} does not mark the assistant's turns "
            "({% generation %}), and TRL has no such template for it: set it to false (the last "
            "answer is learnt), or use another model"
        )


def _turns(item: Demonstration) -> int:
    """How many answers a conversation holds."""
    roles = [message["role"] for message in [*item.prompt, *item.completion]]  # type: ignore
    return roles.count("assistant")


# --- Lengths --------------------------------------------------------------------------------------


def check_pairs(
    experiment: Experiment, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Try the tokenizer on preference pairs; count those that dpo.max_length cuts or drops.

    Of a large data set 2,000 are counted.

    Raises:
        UserError: The template refuses them, or no pair keeps anything of its answers.
    """
    key = "data.preferences_name"
    forms = one_of_each(pairs)
    check_template(experiment, tokenizer, key, ((pair.prompt, pair.chosen) for pair in forms))
    method = experiment.stage(experiment.policy).section if experiment.policy else "dpo"
    limit, mode = _limits(experiment, method)
    if limit is None:
        return
    dropped = cut = 0
    looked_at = sample(pairs, _COUNTED)
    for pair in looked_at:
        sides = (pair.chosen, pair.rejected)
        lengths = [_lengths(tokenizer, pair.prompt, side, limit) for side in sides]
        if mode == "keep_start" and min(prompt for prompt, _ in lengths) >= limit:
            dropped += 1
        elif max(whole for _, whole in lengths) > limit:
            cut += 1
    name, all_of = experiment.data.preferences_name, len(pairs)
    _tell_cut(name, "pairs", len(looked_at), all_of, dropped, cut, method, limit)


def _check_demonstration_lengths(
    experiment: Experiment,
    items: Sequence[str | Demonstration],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    limit, mode = _limits(experiment, "sft")
    if limit is None or experiment.trainer_args("sft").get("packing"):
        return
    dropped = cut = 0
    looked_at = sample(items, _COUNTED)
    for item in looked_at:
        prompt, answer = ("", item) if isinstance(item, str) else (item.prompt, item.completion)
        begin, whole = _lengths(tokenizer, prompt, answer, limit)
        if mode == "keep_start" and begin >= limit:
            dropped += 1
        elif whole > limit:
            cut += 1
    name = experiment.data.dataset_name
    _tell_cut(name, "demonstrations", len(looked_at), len(items), dropped, cut, "sft", limit)


def _limits(experiment: Experiment, section: str) -> tuple[int | None, str]:
    """max_length and truncation_mode of a section, as its trainer will have them."""
    # Its import takes seconds, and other stages do without.
    default = {field.name: field.default for field in fields(target(find_stage(section)))}
    given = experiment.trainer_args(section)
    values = [given.get(key, default.get(key)) for key in ("max_length", "truncation_mode")]
    return values[0], str(values[1])


def _lengths(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: Prompt, limit: int
) -> tuple[int, int]:
    """Tokens of the prompt and of all, as TRL cuts them; (0, 0) if they cannot reach ``limit``."""
    # No token is shorter than a byte; a template adds some.
    size = sum(len(str(part).encode()) for part in (prompt, answer))
    if isinstance(prompt, str) and size < limit - 2:
        return 0, 0
    begin, tokens = learnt_tokens(tokenizer, prompt, answer)
    return begin, len(tokens)


def _tell_cut(
    name: str | None,
    what: str,
    total: int,
    all_of: int,
    dropped: int,
    cut: int,
    stage: str,
    limit: int,
) -> None:
    """Tell what was found of ``total`` that were looked at of ``all_of``."""
    key = f"{stage}.max_length"
    some = "" if total == all_of else f" (looked at, of {all_of:,})"
    if dropped == total:
        raise UserError(
            f"{key}: in none of the {total} {what} of {name} does {limit} leave anything of the "
            f"answer: the prompts alone are longer; raise {key}, or set it to null"
        )
    if dropped:
        alone = f"the prompt alone fills {key} ({limit} tokens)"
        tell(f"{name}: {dropped:,} of {total:,} {what}{some} left out: {alone}")
    if cut:
        longer = f"longer than {key} ({limit} tokens) and cut"
        tell(f"{name}: {cut:,} of {total:,} {what}{some} are {longer}")
