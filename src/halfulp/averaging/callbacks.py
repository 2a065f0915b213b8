"""Averages inside trainers: Hugging Face's ``Trainer`` and Lightning.

Both work alike. Every evaluation during training uses the average. When training ends, the averaged weights are in the
model, so that later evaluations, predictions and saved models match what was measured. Further training resumes from
the live weights and the average as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfulp.averaging.base import WeightAverage
from halfulp.averaging.ema import EMA
from halfulp.checkpoint.files import read_file, write_file
from halfulp.engine.callers import calling
from halfulp.engine.sharding import is_sharded, local_part, whole
from halfulp.monitor.bases import lightning_base, transformers_base
from halfulp.numbers.log import log

__all__ = ["lightning_callback", "trainer_callback"]

Make = Callable[[Any], WeightAverage]


class Keeper:
    """Shared part of both callbacks: keeps an average between trainings, and swaps it in and out of the model."""

    def __init__(self, make: Make | None, evaluate: bool, name: str, options: dict[str, Any]) -> None:
        if make is not None and options:
            raise ValueError(f"make= builds the average, and makes no use of {sorted(options)}")
        self.make, self.evaluate, self.name, self.options = make, evaluate, name, options
        self.average: Any = None
        """The average; ``None`` before the first training."""
        self._live: dict[str, Tensor] = {}
        """Live weights in host memory, kept after training while the model has the averaged weights."""

    def check_others(self, callbacks: Iterable[Any]) -> None:
        """Raise ``ValueError`` if another average of the same trainer has the same name, or is evaluated too."""
        for other in callbacks:
            if other is self or not isinstance(other, Keeper):
                continue
            if other.name == self.name:
                raise ValueError(
                    f"two averages of a trainer are called {self.name!r}, under which both are saved: "
                    "give one of them another name="
                )
            if other.evaluate and self.evaluate:
                raise ValueError(
                    f"the averages {other.name!r} and {self.name!r} would both be evaluated: give "
                    "evaluate=False to all but one"
                )

    def begin(self, model: Any, restored: bool = False) -> None:
        """Start a training. `restored` says that the weights come from a checkpoint."""
        if self.average is not None and self.average.model is model:
            self._take_back(restored)
            return
        if self.average is not None:
            log.warning("the average begins anew: the trainer has another model than in the training before")
        self.average = EMA(model, **self.options) if self.make is None else self.make(model)
        self._live = {}

    def update(self, optimizers: Iterable[Any]) -> None:
        """Update the average after the optimizers have stepped."""
        for optimizer in optimizers:
            self.average.follow(optimizer)
        self.average.update()

    @torch.no_grad()
    def end(self) -> None:
        """End a training: put the averaged weights into the model."""
        if not self.evaluate or self.average is None:
            return
        if not self.average.updates:
            log.warning("the average never moved in %d steps: the model keeps its live weights", self.average.step)
            return
        live = {name: local_part(t).tensor for name, t in self.average.live.items()}
        self._live = {name: tensor.to("cpu", copy=True) for name, tensor in live.items()}
        self.average.copy_to()
        log.info("the model has the averaged weights now; further training resumes from the live ones")

    @torch.no_grad()
    def _take_back(self, restored: bool) -> None:
        live, self._live = self._live, {}
        if restored or not live:
            return
        now = {name: local_part(t).tensor for name, t in self.average.live.items()}
        same = set(now) == set(live) and all(
            torch.equal(t, self.average.value(name).to(t)) for name, t in now.items()
        )  # fmt: skip
        if not same:
            log.warning("the weights were changed since the last training, which goes on with them")
            return
        for name, tensor in now.items():
            tensor.copy_(live[name])

    @property
    def evaluated(self) -> bool:
        """Whether evaluations use the average. Before its first update it has the weights that training began with."""
        return self.evaluate and self.average is not None and self.average.updates > 0

    @contextmanager
    def evaluating(self, model: Any) -> Iterator[None]:
        """Swap the average in, if this is its model and it is not in the model already."""
        average = self.average
        if not self.evaluated or average.swapped or self._live or average.model is not model:
            yield
            return
        with average.swap():
            yield

    @contextmanager
    def swapped_out(self) -> Iterator[None]:
        """Put the live weights back for a checkpoint in the middle of an evaluation."""
        average = self.average
        if average is None or not average.swapped:
            yield
            return
        average.swap_out()
        try:
            yield
        finally:
            average.swap_in()

    def saved(self) -> dict[str, Any]:
        """State of the average, gathered from all ranks."""
        with self.swapped_out():
            state: dict[str, Any] = whole(self.average.state_dict())
        return state

    def __reduce__(self) -> Any:
        state = {k: v for k, v in self.__dict__.items() if not k.startswith("__")}
        return _rebuild, (self.kind,), state  # the class is created on demand, so pickle cannot find it by name

    kind = ""


def _rebuild(kind: str) -> Any:
    made = {"trainer": _trainer_class, "lightning": _lightning_class}[kind]()
    return made.__new__(made)


def _evaluated(keeper: Keeper, trainer: Any, loop: str, *args: Any, **kwargs: Any) -> Any:
    """Run a loop of the trainer with the average in the model."""
    with keeper.evaluating(trainer.model):
        return getattr(type(trainer), loop)(trainer, *args, **kwargs)


def _calling_trainer(callback: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the trainer that calls a callback, and the local variables of its loop."""
    found: Any = None
    for found, variables in calling(
        lambda o: callback in getattr(getattr(o, "callback_handler", None), "callbacks", ())
    ):
        if "resume_from_checkpoint" in variables:
            return found, variables
    return found, {}


@cache
def _trainer_class() -> Any:
    base: Any = transformers_base()

    class AverageCallback(Keeper, base):
        kind = "trainer"

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer, loop = _calling_trainer(self)
            if trainer is not None:
                self.check_others(trainer.callback_handler.callbacks)
            resumed = loop.get("resume_from_checkpoint")
            saved = Path(resumed) / self.name if isinstance(resumed, str) else None
            if saved is not None and not saved.exists():
                log.warning("there is no %s: the average begins anew from the weights of the checkpoint", saved)
                self.average, saved = None, None
            self.begin(kwargs["model"], restored=isinstance(resumed, str))
            self._folder = Path(args.output_dir)
            if trainer is None:
                log.warning("no transformers.Trainer calls this callback: evaluations do not use the average")
            else:
                self._folder = Path(trainer._get_output_dir(trial=loop.get("trial")))
                for name in ("evaluation_loop", "prediction_loop"):
                    if hasattr(type(trainer), name):
                        setattr(trainer, name, partial(_evaluated, self, trainer, name))
            if saved is not None:
                self.average.load_state_dict(read_file(saved))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.update([kwargs["optimizer"]] if kwargs.get("optimizer") is not None else ())

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder, saved = self._folder / f"checkpoint-{state.global_step}", self.saved()  # on every rank
            if not args.should_save:
                return
            if not folder.is_dir():
                log.warning("%s does not exist: the average was not saved with it", folder)
                return
            write_file(saved, folder / self.name)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None and self.evaluate:
                best = Path(state.best_model_checkpoint) / self.name
                if not best.exists():
                    log.warning("there is no %s: the model has the live weights of the best checkpoint", best)
                    return
                self.average.load_state_dict(read_file(best))
            self.end()

    return AverageCallback


def trainer_callback(
    make: Make | None = None, *, evaluate: bool = True, name: str = "weight_average", **options: Any
) -> Any:
    """A ``transformers.TrainerCallback`` that keeps a weight average.

    The average is updated after every optimizer step and is available as ``callback.average``. It is saved in the
    trainer's checkpoints (``weight_average.safetensors``) and resumed from the one that
    ``train(resume_from_checkpoint=...)`` names. With `evaluate`, evaluations and predictions during training use the
    average, while checkpoints hold the live weights. After training the model has the averaged weights, or with
    ``load_best_model_at_end`` those of the best checkpoint. So ``evaluate()``, ``predict()`` and ``save_model()`` use
    what was measured. Another ``train()`` resumes from the live weights. Under FSDP2 and DDP every rank averages what
    it holds. The file holds the whole average, and any number of ranks can resume it.

    Parameters
    ----------
    make
        Function that builds the average of a model. Default: an :class:`~halfulp.averaging.ema.EMA` with `options`.
    evaluate
        Whether evaluations and the trained model use the average. Otherwise only ``callback.average`` has it.
    name
        Name of the file. Needed for a trainer with several averages, of which one evaluates.
    options
        Options of :class:`~halfulp.averaging.ema.EMA`.

    Raises
    ------
    ModuleNotFoundError
        If transformers is not installed.

    Examples
    --------
    ``Trainer(model, args, callbacks=[trainer_callback(decay=0.999, state="8bit")])``; run for real in
    ``tests/test_averaging_trainers.py``.
    """
    return _trainer_class()(make, evaluate, f"{name}.safetensors", options)


@cache
def _lightning_class() -> Any:
    base: Any = lightning_base()

    class AverageCallback(Keeper, base):
        kind = "lightning"

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._saved: Any = None
            self._step, self._fitting = 0, False

        @property
        def state_key(self) -> str:
            return self.name

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.check_others(trainer.callbacks)
            self.begin(pl_module, restored=self._saved is not None)
            self._fitting = True
            if self._saved is not None:
                self.average.load_state_dict(self._saved)
                self._saved = None
            if self.evaluate and any(getattr(c, "save_weights_only", False) for c in trainer.checkpoint_callbacks):
                log.warning("save_weights_only=True: the files of a checkpoint callback have live weights")

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._step = trainer.global_step

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step != self._step:
                self._step = trainer.global_step
                self.update(trainer.optimizers)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            self._fitting = False
            self.end()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.on_validation_end(trainer, pl_module)
            self._fitting = False

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if self.evaluated and self._fitting and not self.average.swapped and not trainer.sanity_checking:
                self.average.swap_in()

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if self.average is not None and self.average.swapped:
                self.average.swap_out()

        def state_dict(self) -> dict[str, Any]:
            return {} if self.average is None else self.saved()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if self._fitting and state_dict:  # a tuner restores the weights from before it
                self.average.load_state_dict(state_dict)
            else:
                self._saved = state_dict or None

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            if not self.evaluated:
                return
            with self.swapped_out():
                average, saved = self.average, checkpoint["state_dict"]
                averaged = average.averaged_state_dict()
                live = {name: t for name, t in pl_module.state_dict().items() if name in saved and name in averaged}
                if any(is_sharded(t) for t in averaged.values()) or not set(average.live) <= set(live):
                    log.warning("a sharded or renamed state_dict: checkpoints have the live weights, not the averages")
                    return
                if self._live:  # after training the model has the averages
                    live |= {name: t for name, t in self._live.items() if name in live}
                changed = {n for n in live if live[n] is not saved[n] or n in average.live}
                checkpoint[self._live_key] = {n: live[n].detach().clone() for n in changed if n in live}
                checkpoint["state_dict"] = {n: averaged.get(n, t) for n, t in saved.items()}

        @property
        def _live_key(self) -> str:
            return f"{self.name}_live_weights"

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            live: Mapping[str, Tensor] | None = checkpoint.get(self._live_key)
            if live is not None and trainer.state.fn == "fit":
                pl_module.load_state_dict(live, strict=False)

    return AverageCallback


def lightning_callback(
    make: Make | None = None, *, evaluate: bool = True, name: str = "weight_average", **options: Any
) -> Any:
    """A Lightning ``Callback`` that keeps a weight average, as :func:`trainer_callback` does.

    The average is updated when the optimizer has stepped, also under gradient accumulation. With `evaluate`, validation
    in ``fit`` uses the average, and the module keeps it after ``fit`` for ``test`` and ``predict``. As with Lightning's
    own ``WeightAveraging``, the ``state_dict`` of a checkpoint holds the averaged weights, so that
    ``test(ckpt_path="best")`` and ``load_from_checkpoint`` give what was measured. The live weights are stored beside
    them, and ``fit(ckpt_path=...)`` resumes from those. Another ``fit`` with the same module continues the average.

    Parameters
    ----------
    make, options
        As for :func:`trainer_callback`.
    evaluate
        Whether validation, checkpoints and the module after ``fit`` use the average.
    name
        Key of the state in checkpoints. Needed for a trainer with several averages, of which one evaluates.

    Raises
    ------
    ModuleNotFoundError
        If Lightning is not installed.

    Examples
    --------
    ``lightning.Trainer(callbacks=[lightning_callback(decay=0.999, state="8bit")])``; run for real in
    ``tests/test_averaging_trainers.py``.
    """
    return _lightning_class()(make, evaluate, name, options)
