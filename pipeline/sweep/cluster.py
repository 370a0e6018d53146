"""Jobs on a Ray cluster: each a remote task that runs the same child process as `local`.

The nodes see the sweep's folder, this checkout and the models under the same paths. A node that
dies takes its tasks along, and Ray starts them again elsewhere; a node whose disk is full gets no
more of this sweep. The child of a killed task ends by itself (`pipeline.sweep.trial`), so that its
folder is free for the next try, which goes on from the last checkpoint.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.words import first_line
from pipeline.errors import UserError
from pipeline.output.console import say
from pipeline.sweep import jobs
from pipeline.sweep.jobs import Ended, Job
from pipeline.sweep.local import checkout

if TYPE_CHECKING:
    from pipeline.config.sweeps import RaySection


class Cluster:
    """Runs jobs as tasks of the cluster at ``section.address``.

    Args:
        environment: variables of each job beside those of the node.

    Raises:
        UserError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, section: RaySection, environment: Mapping[str, str]) -> None:
        try:
            ray = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise UserError(
                "sweep.runner: ray is not installed; pip install 'rlhf-pipeline[ray]', or set"
                " sweep.runner=local"
            ) from None
        self._ray, self._section = ray, section
        self._where = (dict(environment), os.getcwd(), checkout())
        try:
            ray.init(address=section.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"sweep.ray.address: {section.address}: {first_line(error)}") from None
        # The nodes need not have this project installed for the one function that runs there.
        ray.cloudpickle.register_pickle_by_value(jobs)
        self._running: dict[Any, Job] = {}
        self._tries: dict[str, int] = {}
        self._full: set[str] = set()

    def has_room(self) -> bool:
        """Always: what does not fit waits in Ray's queue."""
        return True

    def start(self, job: Job) -> None:
        """Hand ``job`` to the cluster."""
        section = self._section
        options: dict[str, Any] = {
            "name": job.name,
            "num_cpus": section.num_cpus,
            "num_gpus": section.num_gpus,
            "max_retries": section.max_retries,
        }
        if self._full:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._full))})"}
        task = self._ray.remote(jobs.on_node).options(**options)
        arguments = (str(job.log), str(job.config), job.stages, *self._where)
        self._running[task.remote(arguments)] = job
        self._tries[job.name] = self._tries.get(job.name, 0) + 1

    def ended(self) -> dict[str, Ended]:
        """What ended since it was last asked, by name; what is tried elsewhere has not."""
        if not self._running:
            return {}
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        found = {}
        for reference in ready:
            job = self._running.pop(reference)
            try:
                ended = Ended(**self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                ended = Ended(1, 0.0, first_line(error))
            if not self._elsewhere(job, ended):
                found[job.name] = ended
        return found

    def _elsewhere(self, job: Job, ended: Ended) -> bool:
        """Start ``job`` again where it failed for its node's disk and there is another node."""
        if not ended.disk_full or not ended.node:
            return False
        self._full.add(ended.node)
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if not alive - self._full or self._tries[job.name] > self._section.max_retries:
            return False
        where = f"a full disk on node {ended.node[:8]}, which gets no more"
        say(f"sweep: {job.name}: {where}; tried elsewhere")
        self.start(job)
        return True

    def busy(self) -> bool:
        """Whether anything runs or waits in the cluster."""
        return bool(self._running)

    def stop(self) -> None:
        """Cancel what runs: its processes end as their tasks do."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()
