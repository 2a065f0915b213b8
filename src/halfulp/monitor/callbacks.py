"""Trainer callbacks of the monitor: Hugging Face's ``Trainer`` and Lightning."""

from __future__ import annotations

from functools import partial
from typing import Any

from halfulp.engine.callers import calling
from halfulp.monitor.bases import lightning_base, transformers_base
from halfulp.monitor.hooked import harmless
from halfulp.monitor.loggers import as_sink, figures
from halfulp.monitor.table import MonitorTable
from halfulp.monitor.watch import StallMonitor
from halfulp.numbers.log import log

__all__ = ["lightning_callback", "trainer_callback"]

HERE = "the monitor's callback"
"""What a message says about an error in a callback, which never interrupts training."""


def trainer_callback(*, sample: int = 16384, every: int = 10, prefix: str = "halfulp", logger: Any = None) -> Any:
    """A ``transformers.TrainerCallback`` that watches the trainer's optimizer and adds its measurements to the logs.

    The measurements go to ``trainer.state.log_history``, to the trainer's reporters (``report_to=``) and to the
    console. The callback moves itself before the reporters. ``callback.table`` is the final table, and the verdicts are
    logged when training ends. If the optimizer cannot be watched, a warning says so and training goes on.

    Parameters
    ----------
    sample, every, prefix
        See :class:`~halfulp.monitor.StallMonitor` and :func:`~halfulp.monitor.log_to`.
    logger
        An additional logger; see :func:`~halfulp.monitor.loggers.as_sink`.

    Raises
    ------
    ModuleNotFoundError
        If transformers is not installed.

    Examples
    --------
    ``Trainer(model, args, callbacks=[trainer_callback()])``; run for real in ``tests/test_monitor_loggers.py``.
    """
    sink = None if logger is None else as_sink(logger)
    base: Any = transformers_base()

    class StallCallback(base):
        table: MonitorTable | None = None
        watch: StallMonitor | None = None

        def __reduce__(self) -> Any:  # the class has no name by which it could be found
            again = partial(trainer_callback, sample=sample, every=every, prefix=prefix, logger=logger)
            return again, (), {"table": self.table}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with harmless(HERE):
                go_first(self)
                self.watch = StallMonitor(kwargs["optimizer"], sample=sample, every=every, model=kwargs.get("model"))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.watch is None or logs is None:
                return
            with harmless(HERE):
                found = figures(self.watch, prefix)
                logs.update(found)  # for the callbacks after this one
                state.log_history[-1].update(found)  # written before any callback is called
                if sink is not None:
                    sink(found, state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.watch is not None:
                with harmless(HERE):
                    self.table = _finish(self.watch)
                self.watch = None

    return StallCallback()


def lightning_callback(*, sample: int = 16384, every: int = 10, prefix: str = "halfulp") -> Any:
    """A Lightning ``Callback`` that watches every optimizer of the trainer and logs through the module's logger.

    ``callback.tables`` holds the final tables, one per optimizer. Works with ``lightning`` and ``pytorch_lightning``.

    Parameters
    ----------
    sample, every, prefix
        See :class:`~halfulp.monitor.StallMonitor` and :func:`~halfulp.monitor.log_to`.

    Raises
    ------
    ModuleNotFoundError
        If Lightning is not installed.

    Examples
    --------
    ``lightning.Trainer(callbacks=[lightning_callback()])``; run for real in ``tests/test_monitor_loggers.py``.
    """
    base: Any = lightning_base()

    class StallCallback(base):
        def __init__(self) -> None:
            super().__init__()
            self.watches: list[StallMonitor] = []
            self.tables: list[MonitorTable] = []

        def __reduce__(self) -> Any:
            again = partial(lightning_callback, sample=sample, every=every, prefix=prefix)
            return again, (), {"tables": self.tables}

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.watches = []
            for optimizer in trainer.optimizers:
                with harmless(HERE):
                    self.watches.append(StallMonitor(optimizer, sample=sample, every=every, model=pl_module))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
            for i, watch in enumerate(self.watches):
                if watch.steps and watch.steps % every == 0:
                    name = prefix if len(self.watches) == 1 else f"{prefix}/optimizer{i}"
                    with harmless(HERE):
                        pl_module.log_dict(figures(watch, name))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            with harmless(HERE):
                self.tables = [_finish(watch) for watch in self.watches]
            self.watches = []

    return StallCallback()


def go_first(callback: Any) -> None:
    """Move a callback before all others of the trainer that is calling it, so that they see what it adds to the logs.

    The trainer does not pass the list to callbacks.
    """

    def tells(handler: Any) -> bool:
        callbacks = getattr(handler, "callbacks", None)
        return isinstance(callbacks, list) and any(c is callback for c in callbacks)

    for handler, _ in calling(tells):
        handler.callbacks.sort(key=lambda c: c is not callback)
        return


def _finish(watch: StallMonitor) -> MonitorTable:
    watch.close()
    table = watch.table()
    for line in table.verdicts():
        log.warning(line)
    return table
