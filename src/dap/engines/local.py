"""The local engine: several processes of this machine make one set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dap.base.alone import locked
from dap.base.claims import Claims
from dap.base.workers import run_workers
from dap.data.sets.contents import part_files
from dap.data.sets.distilled import DistilledSet
from dap.engines.looking import check_still_there
from dap.engines.making import CLAIMS, PATIENCE, Job, clean, finish, has, whole


class Workers:
    """The parent of processes that make one set. It begins the set, runs the processes, and ends the set.

    The parent keeps nothing of the job that was loaded, above all no backbone, because the processes need the memory.

    Args:
        job: the set. Its files beside the images are written now.
    """

    def __init__(self, job: Job) -> None:
        job.check_begun()
        with locked(job.out, wait=PATIENCE):
            job.begin()
        made = DistilledSet.open(job.out)
        job.describe(made)
        self.out, self.name, self.watcher, self.total = job.out, job.name, job.watcher, job.total
        self._used = dict(job.used)
        left = [unit for unit in job.units if not has(made, unit)]
        self.left = len(left)
        self._sizes = {f"{unit.label}-{unit.slots[0]}.jsonl": len(unit.slots) for unit in left}
        self._done = self.total - sum(self._sizes.values())

    def run(self, arguments: Sequence[str], workers: int, spread: bool) -> DistilledSet:
        """Run the processes until the set is whole.

        Args:
            arguments, spread: see `run_workers`.
            workers: how many processes. There are never more than missing units.

        Raises:
            DapError: a process failed by a mistake, or all of them were killed too often. Images that were made stay.
        """
        tell: Callable[[str], object] = self.watcher.note
        if self.left:
            self.watcher.images(self.name, self._done, self.total)
            run_workers(arguments, min(workers, self.left), spread, self._count, tell)
        check_still_there(self.out)
        claims = Claims(self.out / CLAIMS)
        finish(self.out, claims, self._used)
        made = whole(self.out, self.total)
        clean(self.out, claims)
        self.watcher.images(self.name, self.total, self.total)
        return made

    def _count(self) -> None:
        """Tell how many images there are, by the parts of the manifest."""
        there = sum(self._sizes.get(file.name, 0) for file in part_files(self.out))
        if there:  # the first process that ends removes the parts
            self.watcher.images(self.name, self._done + there, self.total)
