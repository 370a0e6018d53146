r"""One four-way crossing with a traffic light.

**Physics.** Time goes in steps of 2 s, the time that one queued vehicle needs to cross. In each
step a Poisson number of vehicles joins the queue of each approach (north, east, south, west), and
each approach with green lets one vehicle go. Green belongs to one axis, north–south or east–west,
so conflicting greens cannot happen. To change axis the light first shows yellow, during which
nobody crosses: changing costs time.

**Rush.** The arrival rates of the two axes swing in opposite directions,
:math:`\lambda_i(t) = \lambda_i (1 \pm s \cos 2\pi(t + t_0)/T)` with + for north–south, and the
episode starts at a random :math:`t_0`. A fixed cycle serves half of the time the axis that has
little to serve; always serving the longest queue changes too often.

**Reward.** Minus the vehicle-minutes waited in the step: vehicles left queued × 2 s / 60. The
return of an episode is therefore minus its total waiting, in vehicle-minutes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from classic_rl.envs import drawing
from classic_rl.errors import ProblemError

STEP_SECONDS = 2.0
APPROACHES = ("north", "east", "south", "west")  # Approach i lies on axis i % 2.
AXES = ("north-south", "east-west")
# The action is the set of axes asked to be green, axis k being bit k.
KEEP, NORTH_SOUTH, EAST_WEST, BOTH = range(4)
# Divisors of the observation; what is beyond them is shown as 1.
QUEUE_SCALE, WAIT_SCALE, PHASE_SCALE = 40, 60, 60  # vehicles, steps, steps
BLOCK = 256  # Steps whose arrivals are drawn together, for speed.


class TrafficLight(drawing.DrawnEnv):
    """The crossing; it never ends by itself, a time limit truncates it.

    Actions: 0 keep, 1 ask green for north–south, 2 for east–west, 3 for both, which is a conflict:
    it costs ``conflict_penalty`` and changes nothing. A request made during yellow or before the
    minimum green has passed has no effect either, and costs nothing.

    Observation, float32 ``(12,)`` in [0, 1]: 0–3 queues (/ 40 vehicles), 4–7 the longest wait of
    each queue (/ 120 s), 8–9 the axis that has green or, in yellow, had it last (one-hot), 10
    whether it is yellow, 11 the time in this phase (/ 120 s).

    Info: ``queue`` (vehicles waiting), and since the reset ``arrived``, ``departed``, ``switches``
    (greens ended) and ``conflicts``.

    Args:
        rates: mean arrivals a step of the north, east, south and west approach.
        swing: share by which the rates swing, 0 (constant) to 1.
        period: steps from one rush to the next of the same axis.
        min_green: least steps of green.
        yellow: steps of yellow.
        conflict_penalty: cost of asking for both, in vehicle-minutes.
        render_mode: ``"ansi"`` or ``"rgb_array"``.

    Raises:
        ProblemError: for a setting that cannot be used.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}

    def __init__(
        self,
        *,
        rates: Sequence[float] = (0.3, 0.22, 0.2, 0.12),
        swing: float = 0.6,
        period: int = 300,
        min_green: int = 3,
        yellow: int = 3,
        conflict_penalty: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        if len(rates) != 4 or not all(0 <= rate < math.inf for rate in rates):
            raise ProblemError(f"rates: {rates} must be four numbers of at least 0")
        if not 0 <= swing <= 1:
            raise ProblemError(f"swing: {swing} is not between 0 and 1")
        for name, steps in (("period", period), ("min_green", min_green), ("yellow", yellow)):
            if steps < 1:
                raise ProblemError(f"{name}: {steps} is less than one step")
        if not 0 <= conflict_penalty < math.inf:
            raise ProblemError(f"conflict_penalty: {conflict_penalty} must be at least 0")
        self.rates = np.asarray(rates, dtype=float)
        self.swing, self.period = swing, period
        self.min_green, self.yellow = min_green, yellow
        self.conflict_penalty = conflict_penalty
        self.observation_space = gym.spaces.Box(0.0, 1.0, (12,), np.float32)
        self.action_space = gym.spaces.Discrete(4)
        self._begin(offset=0.0)

    def _begin(self, offset: float) -> None:
        self._offset = offset
        self._time = 0  # steps since the reset
        self._axis, self._is_yellow, self._elapsed = 0, False, 0
        # The step in which each waiting vehicle arrived, the longest waiting first.
        self._queues: list[deque[int]] = [deque() for _ in APPROACHES]
        self._arrivals: list[list[int]] = []
        self._arrived = self._departed = self._switches = self._conflicts = 0

    @property
    def queues(self) -> list[int]:
        """Vehicles waiting at each approach."""
        return [len(queue) for queue in self._queues]

    @property
    def greens(self) -> tuple[bool, bool, bool, bool]:
        """Which approaches have green."""
        north_south = self._axis == 0 and not self._is_yellow
        east_west = self._axis == 1 and not self._is_yellow
        return north_south, east_west, north_south, east_west

    def rates_at(self, time: np.ndarray) -> np.ndarray:
        """Mean arrivals a step, ``(T, 4)``, at the steps ``time`` ``(T,)`` of this episode."""
        wave = self.swing * np.cos(2 * np.pi * (time + self._offset) / self.period)
        return self.rates * (1 + wave[:, None] * np.array([1, -1, 1, -1]))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._begin(offset=self.np_random.uniform(0, self.period))
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        drawing.check_action(action, 4)
        self._change_light(action)
        self._move_vehicles()
        self._time += 1
        waited = sum(map(len, self._queues)) * STEP_SECONDS / 60
        reward = -waited
        if action == BOTH:
            self._conflicts += 1
            reward -= self.conflict_penalty
        return self._observation(), reward, False, False, self._info()

    def _change_light(self, action: int) -> None:
        """The phase of this step: green → yellow on request, yellow → the other's green."""
        if self._is_yellow:
            if self._elapsed >= self.yellow:
                self._axis, self._is_yellow, self._elapsed = 1 - self._axis, False, 0
        elif action == (EAST_WEST, NORTH_SOUTH)[self._axis] and self._elapsed >= self.min_green:
            self._is_yellow, self._elapsed = True, 0
            self._switches += 1
        self._elapsed += 1

    def _move_vehicles(self) -> None:
        place = self._time % BLOCK
        if place == 0:
            block = self.rates_at(np.arange(self._time, self._time + BLOCK))
            self._arrivals = self.np_random.poisson(block).tolist()
        for queue, count in zip(self._queues, self._arrivals[place], strict=True):
            for _ in range(count):
                queue.append(self._time)
            self._arrived += count
        if not self._is_yellow:
            for queue in (self._queues[self._axis], self._queues[self._axis + 2]):
                if queue:
                    queue.popleft()
                    self._departed += 1

    def _observation(self) -> np.ndarray:
        queues, now, axis = self._queues, self._time, self._axis
        return np.array(
            [
                *[min(len(queue) / QUEUE_SCALE, 1.0) for queue in queues],
                *[min((now - queue[0]) / WAIT_SCALE, 1.0) if queue else 0.0 for queue in queues],
                1 - axis,
                axis,
                self._is_yellow,
                min(self._elapsed / PHASE_SCALE, 1.0),
            ],
            dtype=np.float32,
        )

    def _info(self) -> dict[str, Any]:
        return {
            "queue": self._arrived - self._departed,
            "arrived": self._arrived,
            "departed": self._departed,
            "switches": self._switches,
            "conflicts": self._conflicts,
        }

    def _waits(self) -> list[float]:
        """The longest wait at each approach, in seconds."""
        return [(self._time - q[0]) * STEP_SECONDS if q else 0.0 for q in self._queues]

    def text(self) -> str:
        light = f"{AXES[self._axis]} {'yellow' if self._is_yellow else 'green'}"
        lines = [f"{self._time * STEP_SECONDS:5.0f} s   {light} for {self._elapsed} steps"]
        for name, count, wait in zip(APPROACHES, self.queues, self._waits(), strict=True):
            lines.append(f"{name:>5} {count:3d} waiting, longest {wait:4.0f} s  {'o' * count}")
        return "\n".join(lines) + "\n"

    def picture(self) -> np.ndarray:
        """The crossing from above: lights at the stop lines, a block for each waiting vehicle."""
        size, half, shown = 12.0, 0.8, 9
        middle = size / 2
        axes = drawing.canvas(size, size, pixels=36)
        drawing.rectangle(axes, 0, 0, size, size, color="#e8eee6")
        drawing.rectangle(axes, middle - half, 0, 2 * half, size, color="#59636b")
        drawing.rectangle(axes, 0, middle - half, size, 2 * half, color="#59636b")
        # Unit vectors from the middle to where the vehicles of each approach wait; y points down.
        # They keep to the right of the road, seen in their direction of travel.
        for approach, (x, y) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
            lane_x, lane_y = middle + y * 0.4, middle - x * 0.4
            colour = drawing.RED
            if approach % 2 == self._axis:
                colour = drawing.YELLOW if self._is_yellow else drawing.GREEN
            lamp = half + 0.22
            drawing.disc(axes, lane_x + x * lamp, lane_y + y * lamp, 0.17, color=colour)
            count = self.queues[approach]
            for place in range(min(count, shown)):
                away = half + 0.75 + 0.46 * place
                drawing.rectangle(
                    axes,
                    lane_x + x * away - 0.15,
                    lane_y + y * away - 0.15,
                    0.3,
                    0.3,
                    color="#f2f4f5",
                )
            # The count stands beside the road, at its outer end.
            drawing.label(
                axes,
                middle + x * 4.6 + y * 1.5,
                middle + y * 4.6 - x * 1.5,
                f"{count}",
                size=16,
            )
        drawing.label(axes, 2.2, 0.6, f"{self._time * STEP_SECONDS:.0f} s", size=13)
        return drawing.to_array(axes)


@dataclass(frozen=True)
class FixedCycle:
    """Green for ``green`` steps to each axis in turn, whatever the queues are.

    The best length depends on the load: Webster (1958) weighs the time lost in yellow against the
    waiting for a long cycle.
    """

    green: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.green <= PHASE_SCALE:
            raise ProblemError(f"green: {self.green} is not between 1 and {PHASE_SCALE} steps")

    def __call__(self, observation: np.ndarray) -> int:
        if observation[11] * PHASE_SCALE < self.green - 0.5:
            return KEEP
        return EAST_WEST if observation[8] else NORTH_SOUTH


@dataclass(frozen=True)
class LongestQueue:
    """Green to the axis with more vehicles waiting; a tie changes nothing."""

    def __call__(self, observation: np.ndarray) -> int:
        north, east, south, west = observation[:4]
        if north + south == east + west:
            return KEEP
        return NORTH_SOUTH if north + south > east + west else EAST_WEST
