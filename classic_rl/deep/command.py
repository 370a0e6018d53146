"""The deep half of ``python -m classic_rl``: train, evaluate, watch.

    python -m classic_rl ppo --env LunarLander-v3 --seed 3 --track
    python -m classic_rl dqn --env CartPole-v1 --seeds 0 1 2 learning_rate=1e-3 double=false
    python -m classic_rl evaluate runs/classic/ppo-LunarLander-v3-seed3
    python -m classic_rl watch runs/classic/ppo-LunarLander-v3-seed3

torch is imported only after the words of the command are read.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from classic_rl.algorithms import ALGORITHMS
from classic_rl.errors import ProblemError
from classic_rl.folders import RUNS, slug
from common.parser import Parser

if TYPE_CHECKING:
    from classic_rl.deep.run import RunConfig
    from classic_rl.deep.trackers import TrackerName

EPISODES = 100  # of an evaluation
NEEDED = ("torch", "safetensors", "yaml")  # which the tables do without
Handler = Callable[[argparse.Namespace], int]
COMMANDS = {name: algorithm.about for name, algorithm in ALGORITHMS.items()} | {
    "evaluate": "play episodes with a trained policy and count the returns",
    "watch": "an episode of a trained policy as an animation and a picture strip",
}


def main(argv: Sequence[str], prog: str = "python -m classic_rl") -> int:
    """Run one of `COMMANDS`, the first word of ``argv``; return the exit status.

    Raises:
        ProblemError: for every mistake of the user.
    """
    name, *words = argv
    if missing := [module for module in NEEDED if importlib.util.find_spec(module) is None]:
        raise ProblemError(
            f"{name} needs {' and '.join(missing)}, which tables do without:"
            " install classic-rl[deep]"
        )
    parser = Parser(
        raises=ProblemError,
        settings=lambda: _settings(name),
        prog=f"{prog} {name}",
        description=COMMANDS[name].capitalize() + ".",
    )
    handler = _add(parser, name)
    return handler(parser.parse_intermixed_args(words))


def _settings(name: str) -> list[str]:
    """The settings of the algorithm of this name; none of another command."""
    if name not in ALGORITHMS:
        return []
    return [field.name for field in fields(ALGORITHMS[name].config_class())]


def _add(parser: argparse.ArgumentParser, name: str) -> Handler:
    """Declare the words of a command; return what runs it."""
    if name == "evaluate":
        _add_folder(parser)
        parser.add_argument("--episodes", type=int, default=EPISODES, help="default: %(default)s")
        return evaluate
    if name == "watch":
        _add_folder(parser)
        parser.add_argument("--out", type=Path, help="folder of the pictures (default: FOLDER)")
        return watch
    _add_training(parser, name)
    return train


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where a training wrote")
    parser.add_argument(
        "--seed", type=int, help="of the first episode (default: as after training)"
    )


def _add_training(parser: argparse.ArgumentParser, algorithm: str) -> None:
    parser.set_defaults(algorithm=algorithm)
    add = parser.add_argument
    add("--env", metavar="ID", help="gymnasium id (default: CartPole-v1)")
    add("--env-arg", metavar="KEY=VALUE", action="append", help="argument of the environment")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    # Text, because argparse hands key=value words that follow an option to it; so does --track.
    seeds.add_argument("--seeds", nargs="+", metavar="N", help="train once with each")
    add("--steps", type=int, metavar="N", help="environment steps to train for")
    add("--out", type=Path, metavar="FOLDER", help=f"default: {RUNS}/{algorithm}-ID-seedN")
    add("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    add("--episodes", type=int, default=EPISODES, help="of the evaluation (default: %(default)s)")
    add(
        "--track",
        nargs="?",
        const="wandb",
        metavar="tensorboard",
        help="curves for Weights & Biases (offline without an account), or for TensorBoard",
    )
    add("--config", type=Path, metavar="FILE", help="settings instead of those in configs/classic")
    add("--print-config", action="store_true", help="print all settings as YAML and stop")
    add("overrides", nargs="*", metavar="key=value", help="any setting that --print-config shows")


def train(arguments: argparse.Namespace) -> int:
    """Train one algorithm, with one seed or several."""
    track, seeds, overrides = _words(arguments)
    from classic_rl.deep.configuration import configure, to_yaml, with_checkpoints

    flags = {"total_steps": arguments.steps, "seed": seeds[0] if seeds else None}
    config = with_checkpoints(
        configure(
            arguments.algorithm,
            arguments.env,
            path=arguments.config,
            flags={name: value for name, value in flags.items() if value is not None},
            overrides=overrides,
        )
    )
    if arguments.print_config:
        print(to_yaml(config), end="")
        return 0
    if arguments.episodes < 1:
        raise ProblemError(f"--episodes {arguments.episodes}: must be at least 1")
    name = f"{arguments.algorithm}-{slug(config.env_id)}"
    if len(seeds) > 1:
        folder = arguments.out or RUNS / name
        folders = [folder / f"seed{seed}" for seed in seeds]
        configs = [replace(config, seed=seed) for seed in seeds]
    else:
        folder = arguments.out or RUNS / f"{name}-seed{config.seed}"
        folders, configs = [folder], [config]
    return _train(arguments, track, configs, folders, folder)


def _words(arguments: argparse.Namespace) -> tuple[TrackerName | None, list[int], list[str]]:
    """The tracker, the seeds (none for the settings' own) and the overrides."""
    overrides = [f"env_kwargs.{word}" for word in arguments.env_arg or []]
    overrides += arguments.overrides
    track = arguments.track
    if track is not None and "=" in track:
        overrides.append(track)
        track = "wandb"
    if track not in (None, "wandb", "tensorboard"):
        raise ProblemError(f"--track {track}: there are wandb (--track alone) and tensorboard")
    if arguments.seed is not None:
        return track, [arguments.seed], overrides
    words = arguments.seeds or []
    overrides += [word for word in words if "=" in word]
    words = [word for word in words if "=" not in word]
    if not all(word.isdecimal() for word in words):
        raise ProblemError(f"--seeds {' '.join(words)}: seeds are whole numbers")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ProblemError(f"--seeds {' '.join(words)}: a seed is there twice")
    return track, seeds, overrides


def _train(
    arguments: argparse.Namespace,
    track: TrackerName | None,
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    folder: Path,
) -> int:
    from classic_rl.deep import training
    from classic_rl.deep.remarks import remarks
    from classic_rl.deep.run import CHECKPOINT_FILE

    trained = []
    try:
        for config, place in zip(configs, folders, strict=True):
            trained.append(
                training.train(
                    arguments.algorithm,
                    config,
                    place,
                    episodes=arguments.episodes,
                    resume=arguments.resume,
                    track=track,
                )
            )
    except MemoryError as error:
        print(f"error: not enough memory: {error or 'make the settings smaller'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = any((place / CHECKPOINT_FILE).exists() for place in folders)
        then = f"goes on in {folder}" if kept or trained else "begins anew, nothing is saved yet"
        print(f"interrupted: the same command with --resume {then}", file=sys.stderr)
        return 130
    print(training.table(trained))
    for run in trained:
        for line in remarks(run):
            print(line)
    picture = training.write_curve(trained, folder)
    print(f"files: {folder}" + (f", picture: {picture}" if picture else ""))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Play episodes greedily and print how they went."""
    from classic_rl.deep import training

    seed = training.EVALUATION_SEED if arguments.seed is None else arguments.seed
    measured = training.evaluate(arguments.folder, arguments.episodes, seed)
    scores = training.summary(measured.returns)
    print(
        f"{len(measured.returns)} episodes: return {scores['mean']:.1f} ± {scores['std']:.1f},"
        f" from {scores['low']:.1f} to {scores['high']:.1f},"
        f" {measured.lengths.mean():.1f} steps an episode"
    )
    return 0


def watch(arguments: argparse.Namespace) -> int:
    """Write an episode as an animation and a picture strip."""
    from classic_rl.deep import training
    from classic_rl.deep.policy_file import load_policy
    from classic_rl.deep.watch import film, write_film

    policy, env_id, env_kwargs = load_policy(arguments.folder)
    seed = training.EVALUATION_SEED if arguments.seed is None else arguments.seed
    shown = film(policy, env_id, env_kwargs, seed)
    for path in write_film(shown, arguments.out or arguments.folder):
        print(path)
    return 0
