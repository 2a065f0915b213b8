"""Watch an optimizer and count which of its updates stall.

:class:`StallMonitor` reads a fixed sample of coordinates before and after a step, computes the exact new value of every
state, and compares. It only reads: training is unchanged, bit for bit.

* **stalled fraction**: the share of updates that left the stored value unchanged although the exact successor
  ``beta * v + gain * x`` differs from it. A decay that is rounded away (zero gradient, nonzero value) counts. A zero
  that stays zero does not. If an fp32 scale moves a whole block at each step, codes are compared instead of values.
* **predicted**: the theoretical stalled fraction, averaged over the ages of the counted updates.
* **lag**: the median of ``log(stored / shadow)``. The shadow is the same EMA kept in float64 on the sample since the
  monitor was attached. ``ratio`` is the mean stored value over the mean of the shadow (of magnitudes, if signed).
* **off 2x**: the share of coordinates more than a factor of two away from their shadow.
* **factor**, **residual**, for averages of squares: Adam divides by the root of such a state. `factor` is how much
  larger all updates are than with the shadow. Dividing the learning rate by it removes this error. `residual` is the
  remaining mean squared error, relative to the mean square of an update.
* **weights**: for 16-bit parameters, the share of weights that did not change although their update was not zero, and
  the share of the intended movement that took place (``weights_moved``; 1 is right). The update is computed in float64
  from the optimizer's own rule if it is known. Otherwise a weight counts as due if its gradient or first moment is not
  zero.
"""

from __future__ import annotations

from halfulp.monitor.callbacks import lightning_callback, trainer_callback
from halfulp.monitor.gradients import GradientSample
from halfulp.monitor.loggers import log_to
from halfulp.monitor.results import Measure
from halfulp.monitor.table import MonitorTable, Row
from halfulp.monitor.watch import StallMonitor

__all__ = [
    "GradientSample", "Measure", "MonitorTable", "Row", "StallMonitor", "lightning_callback", "log_to",
    "trainer_callback",
]  # fmt: skip
