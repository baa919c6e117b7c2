"""A run's folder and state know one process: here rank 0 keeps them for all, and all ranks stop after the same step."""

from pathlib import Path
from types import FrameType

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine

from scripts.training.run_folder import RunFolder
from scripts.training.training_state import TrainingState


class RankRunFolder(RunFolder):
    """Rank 0 has the folders; the others get the state to continue from by its hands."""

    def claim(self) -> None:
        """Take the folders, on rank 0, and find the state to continue from."""
        if idist.get_rank() == 0:
            super().claim()
        if idist.get_world_size() > 1:
            states = [self.state]
            dist.broadcast_object_list(states, src=0)
            self.state = states[0]

    def begin(self) -> None:
        """Record the run, on rank 0."""
        if idist.get_rank() == 0:
            super().begin()


class RankState(TrainingState):
    """Rank 0 saves the state; a signal to any rank, or a loss that is not finite on any, stops all after one step.

    A second signal does nothing here: ``torchrun`` repeats a terminal's to the ranks, and kills them 30 s later.
    """

    _told = 0  # the signal that this rank got; what the ranks have agreed upon is _signal

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if idist.get_world_size() == 1:
            return super()._on_signal(number, frame)
        self._told = number
        return None

    def _agree(self, failed: bool = False) -> bool:
        """Whether any rank has ``failed``, and, as all ranks' ``_signal``, whether any was told to stop."""
        votes = torch.tensor([self._told, int(failed)], device=self.trainer.state.device)
        told, failed = idist.all_reduce(votes, "MAX").tolist()
        self._signal = told or self._signal
        return bool(failed)

    def _refuse_infinite_loss(self, trainer: Engine) -> None:
        if self._agree(not torch.isfinite(trainer.state.output["loss"]).all()):
            self._save(self.run_folder.path.with_name("checkpoint_failed.pt"))
            idist.barrier()
            super()._refuse_infinite_loss(trainer)
            raise SystemExit(1)  # the loss of another rank, which tells its scans

    def _stop_validation_if_told(self, evaluator: Engine) -> None:
        loader, n_ranks = evaluator.data_loader, getattr(evaluator.data_loader.sampler, "num_replicas", 1)
        if evaluator.state.iteration <= len(loader.dataset) // n_ranks:  # a scan that all ranks have
            self._agree()
        super()._stop_validation_if_told(evaluator)

    def _stop(self, epoch_pending: bool) -> None:
        try:
            super()._stop(epoch_pending)
        finally:
            idist.barrier()  # torchrun ends all when one has ended, also rank 0 while it saves
            idist.finalize()

    def _save(self, path: Path, epoch_pending: bool = False) -> None:
        if idist.get_rank() == 0:
            super()._save(path, epoch_pending)

    def _restore_signals(self) -> None:
        if idist.get_world_size() == 1:  # else torchrun's signal would end the rank before it has told its error
            super()._restore_signals()
