"""Settings that are allowed and do not do what their names say."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.ppo.config import PPOConfig

_LEAST_SEEN = 0.01  # of the score by a completion's first token, less is warned of
_MANY_PREFIXES = 128  # of one completion, more are warned of: their texts are quadratic
# Optimality with each estimator in the reward, medians over five seeds: docs/certificate.md.
_IN_REWARD, _IN_REWARD_K1 = {"k2": "0.29", "k3": "-0.19"}, "0.99"


def advice(args: PPOConfig) -> Iterator[str]:
    """What is set and does not do what its name says, a line each."""
    optimality = _IN_REWARD.get(args.kl_estimator)
    if args.kl_in == "reward" and optimality is not None and args.kl_coef > 0:
        yield (
            f"kl_estimator={args.kl_estimator} in the reward does not lead to the optimum of"
            f" reward and KL: measured {optimality} of the way from the reference to it,"
            f" {_IN_REWARD_K1} with k1 (docs/certificate.md); set k1, or kl_in: loss"
        )
    asked = -(-args.response_length // args.prefix_every)
    if args.critic == "prefix" and asked > _MANY_PREFIXES:
        yield (
            f"critic=prefix: a completion of {args.response_length} tokens asks the reward"
            f" {asked} times, each time with a longer text; set prefix_every:"
            f" {-(-args.response_length // _MANY_PREFIXES)} or more"
        )
    if args.prefix_every > 1 and args.critic != "prefix":
        yield f"prefix_every={args.prefix_every} does nothing without critic: prefix"
    seen = (args.gamma * args.lam) ** (args.response_length - 1)
    if seen < _LEAST_SEEN:
        yield (
            f"lam={args.lam:g}: of {args.response_length} tokens the first is credited with"
            f" {seen:.1g} of a score at the end, until the critic has learned; set lam: 1"
        )
    default = type(args).__dataclass_fields__["vf_coef"].default
    if not args.value_backprop and args.vf_coef not in (0, default):
        yield (
            f"vf_coef={args.vf_coef:g} changes next to nothing without value_backprop, as"
            " Adam's steps do not depend on a loss's scale; set value_learning_rate"
        )
