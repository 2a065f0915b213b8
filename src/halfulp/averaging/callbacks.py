"""Averages inside trainers: Hugging Face's ``Trainer`` and Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.ema import EMA
from halfulp.averaging.shards import whole
from halfulp.checkpoint.files import read_file, write_file
from halfulp.monitor.bases import lightning_base, transformers_base

__all__ = ["lightning_callback", "trainer_callback"]

Make = Callable[[Any], WeightAverage]


def trainer_callback(
    make: Make | None = None, *, evaluate: bool = True, name: str = "weight_average", **options: Any
) -> Any:
    """A ``transformers.TrainerCallback`` that keeps a weight average.

    The average moves after every optimizer step, is saved into and resumed from the trainer's checkpoints
    (``weight_average.safetensors``), and is ``callback.average``. With `evaluate`, evaluations in training see the
    averaged weights, from ``on_step_end`` of a step that evaluates to ``on_evaluate``; what is saved is the live model.
    Under FSDP2 and DDP every rank averages what it holds; the file holds the whole, and any number of ranks resumes it.

    Parameters
    ----------
    make
        From the model to an average; an :class:`~halfulp.averaging.ema.EMA` with `options` without.
    evaluate
        Whether evaluations are of the average.
    name
        Of the file, for a trainer with several averages (of which one evaluates).
    options
        Of :class:`~halfulp.averaging.ema.EMA`.

    Raises
    ------
    ModuleNotFoundError
        Without transformers.

    Examples
    --------
    ``Trainer(model, args, callbacks=[trainer_callback(decay=0.999, state="8bit")])``; run for real in
    ``tests/test_averaging_methods.py``.
    """
    base: Any = transformers_base()
    name += ".safetensors"
    build = make or (lambda model: EMA(model, **options))

    class AverageCallback(base):
        average: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.average = build(kwargs["model"])
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}" / name
            if state.global_step and saved.exists():
                self.average.load_state_dict(read_file(saved))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.average.update()
            self._before_evaluation(control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._before_evaluation(control)

        def _before_evaluation(self, control: Any) -> None:
            if evaluate and control.should_evaluate and not self.average.swapped:
                self.average.swap_in()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            saved = whole(self.average.state_dict())  # on every rank: shards are gathered
            if state.is_world_process_zero and folder.is_dir():
                write_file(saved, folder / name)

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.average is not None and self.average.swapped:
                self.average.swap_out()

    return AverageCallback()


def lightning_callback(
    make: Make | None = None, *, evaluate: bool = True, name: str = "weight_average", **options: Any
) -> Any:
    """A Lightning ``Callback`` that keeps a weight average, as :func:`trainer_callback` does; state in checkpoints.

    The average moves when the optimizer has stepped, also under gradient accumulation.

    Parameters
    ----------
    make, evaluate, options
        As of :func:`trainer_callback`; evaluations are those of the validation loop.
    name
        Key of the state in checkpoints, for a trainer with several averages (of which one evaluates).

    Raises
    ------
    ModuleNotFoundError
        Without Lightning.

    Examples
    --------
    ``lightning.Trainer(callbacks=[lightning_callback(decay=0.999, state="8bit")])``; run for real in
    ``tests/test_averaging_methods.py``.
    """
    base: Any = lightning_base()
    build = make or (lambda model: EMA(model, **options))

    class AverageCallback(base):
        def __init__(self) -> None:
            super().__init__()
            self.average: Any = None
            self._saved: Any = None
            self._step = 0

        @property
        def state_key(self) -> str:
            return name

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.average = build(pl_module)
            if self._saved is not None:
                self.average.load_state_dict(self._saved)
                self._saved = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._step = trainer.global_step

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step != self._step:
                self._step = trainer.global_step
                self.average.update()

        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if evaluate and self.average is not None and not trainer.sanity_checking:
                self.average.swap_in()

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if self.average is not None and self.average.swapped:
                self.average.swap_out()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.on_validation_epoch_end(trainer, pl_module)

        def state_dict(self) -> dict[str, Any]:
            return {} if self.average is None else whole(self.average.state_dict())

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self._saved = state_dict or None

    return AverageCallback()
