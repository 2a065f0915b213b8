"""The monitor inside trainers: Hugging Face's ``Trainer`` and Lightning."""

from __future__ import annotations

from typing import Any

from halfulp.monitor.bases import lightning_base, transformers_base
from halfulp.monitor.loggers import as_sink, figures
from halfulp.monitor.table import MonitorTable
from halfulp.monitor.watch import StallMonitor

__all__ = ["lightning_callback", "trainer_callback"]


def trainer_callback(*, sample: int = 16384, every: int = 10, prefix: str = "halfulp", logger: Any = None) -> Any:
    """A ``transformers.TrainerCallback`` that watches the trainer's optimizer and adds its figures to the logs.

    They go to ``trainer.state.log_history`` and to the callbacks after this one (the console). The trainer's own
    reporters (``report_to=``) come before any callback of the user; give `logger` to reach them too. The final table is
    ``callback.table``, and the verdicts are logged when training ends.

    Parameters
    ----------
    sample, every, prefix
        See :class:`~halfulp.monitor.StallMonitor` and :func:`~halfulp.monitor.log_to`.
    logger
        A further logger, see :func:`~halfulp.monitor.loggers.as_sink`.

    Raises
    ------
    ModuleNotFoundError
        Without transformers.

    Examples
    --------
    ``Trainer(model, args, callbacks=[trainer_callback()])``; run for real in ``tests/test_monitor_loggers.py``.
    """
    sink = None if logger is None else as_sink(logger)
    base: Any = transformers_base()

    class StallCallback(base):
        table: MonitorTable | None = None
        watch: StallMonitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.watch = StallMonitor(kwargs["optimizer"], sample=sample, every=every, model=kwargs.get("model"))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if self.watch is None or logs is None:
                return
            found = figures(self.watch, prefix)
            logs.update(found)  # for the callbacks after this one
            state.log_history[-1].update(found)  # written before any callback hears of it
            if sink is not None:
                sink(found, state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.watch is not None:
                self.table = _finish(self.watch)
                self.watch = None

    return StallCallback()


def lightning_callback(*, sample: int = 16384, every: int = 10, prefix: str = "halfulp") -> Any:
    """A Lightning ``Callback`` that watches every optimizer of the trainer and logs through the module's logger.

    The final tables, one an optimizer, are ``callback.tables``. Works with ``lightning`` and ``pytorch_lightning``.

    Parameters
    ----------
    sample, every, prefix
        See :class:`~halfulp.monitor.StallMonitor` and :func:`~halfulp.monitor.log_to`.

    Raises
    ------
    ModuleNotFoundError
        Without Lightning.

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

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.watches = [StallMonitor(o, sample=sample, every=every, model=pl_module) for o in trainer.optimizers]

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
            for i, watch in enumerate(self.watches):
                if watch.steps and watch.steps % every == 0:
                    name = prefix if len(self.watches) == 1 else f"{prefix}/optimizer{i}"
                    pl_module.log_dict(figures(watch, name))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.tables = [_finish(watch) for watch in self.watches]
            self.watches = []

    return StallCallback()


def _finish(watch: StallMonitor) -> MonitorTable:
    from halfulp.numbers.log import log

    watch.close()
    table = watch.table()
    for line in table.verdicts():
        log.warning(line)
    return table
