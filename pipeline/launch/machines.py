"""The launchers of several machines: they agree on what runs, and notice when one is gone.

A machine that loses power or its network says nothing. Its connections stay open, and the other
machines' processes would wait for it as long as a collective may take: half an hour
(`ddp_timeout`). So each launcher counts aloud in a store that machine 0 keeps (torch's TCPStore),
and whoever stops counting for `SILENCE` seconds is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from common.progress import say
from pipeline.errors import UserError
from pipeline.launch.settings import Launch

BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 60.0
"""Seconds without one after which a machine is lost."""
GATHERING = 900.0
"""Seconds that machines wait for each other at the start; the scheduler starts them one by one."""
_ANSWER = timedelta(seconds=20)
_TRY = timedelta(seconds=5)


class LostMachine(Exception):
    """A machine that no longer answers, or never did; the message names it."""


class Machines:
    """What the launchers tell each other. Of a machine alone nothing is sent."""

    def __init__(self, launch: Launch) -> None:
        """Meet the others.

        Raises:
            LostMachine: they do not come within `GATHERING` seconds.
            UserError: the address is not this machine's, which is the first.
        """
        self.launch = launch
        self._count, self._last = 0, 0.0
        self._beats: dict[int, tuple[str | None, float]] = {}
        self._store: Any = None
        if launch.machines > 1:
            self._store = self._meet()
            self.look()

    def _meet(self) -> Any:
        from torch.distributed import TCPStore

        launch = self.launch
        first = launch.rank == 0
        others = f"{launch.machines - 1} more" if first else f"machine 0 at {launch.address}"
        say(f"machine {launch.rank} of {launch.machines}: waiting for {others}")
        deadline = time.monotonic() + GATHERING
        while True:
            try:
                store = TCPStore(
                    str(launch.address),
                    launch.port,
                    is_master=first,
                    wait_for_workers=False,
                    # While it waits no signal is heeded, Ctrl-C neither.
                    timeout=_ANSWER if first else _TRY,
                )
            except RuntimeError as error:
                if first:
                    raise UserError(
                        f"--main-process-ip: {launch.address}: this machine 0 does not reach"
                        " itself there; set its own address, the same on every machine"
                    ) from error
                if time.monotonic() > deadline:
                    raise LostMachine(
                        f"machine 0: no answer at {launch.address}:{launch.port} within"
                        f" {GATHERING / 60:.0f} minutes; start the command there too, or check"
                        " --main-process-ip and --main-process-port"
                    ) from error
            else:
                store.set_timeout(_ANSWER)
                return store

    def tell(self, key: str, value: str) -> None:
        """Leave a word for the others; for oneself too."""
        if self._store is not None:
            self._ask(lambda: self._store.set(key, value))

    def told(self, key: str) -> str | None:
        """What was left under ``key``, None where nothing was so far."""
        if self._store is None:
            return None
        return self._ask(
            lambda: self._store.get(key).decode() if self._store.check([key]) else None
        )

    def look(self) -> None:
        """Show that this machine is there, and look for the others, every `BEAT` seconds.

        Raises:
            LostMachine: one has stopped, or has not come.
        """
        now = time.monotonic()
        if self._store is None or now - self._last < BEAT:
            return
        self._last = now
        self._beat()
        for other in range(self.launch.machines):
            if other == self.launch.rank:
                continue
            beat = self.told(f"beat/{other}")
            before, since = self._beats.setdefault(other, (beat, now))
            if beat != before:
                self._beats[other] = beat, now
            elif now - since > (GATHERING if beat is None else SILENCE):
                why = "has not come" if beat is None else "no longer answers"
                raise LostMachine(f"machine {other} {why} ({now - since:.0f} s)")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Show that this machine is there while the block works and looks for nobody."""
        done = threading.Event()

        def beat() -> None:
            with suppress(LostMachine):  # whoever looks next will notice
                while not done.wait(BEAT):
                    self._beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat(self) -> None:
        self._count += 1
        self.tell(f"beat/{self.launch.rank}", str(self._count))

    def _ask(self, question: Any) -> Any:
        try:
            return question()
        except RuntimeError as error:  # DistStoreError, DistNetworkError
            raise LostMachine("machine 0 no longer answers") from error
