"""Watch an optimizer and count which of its updates stall.

:class:`StallMonitor` looks at a fixed sample of coordinates before and after a step, works out what every state
should have become, and compares. It reads only: not a bit of the training changes.

* **stalled fraction**: share of updates that left the stored value as it was, although the exact successor
  ``beta * v + gain * x`` differs from it. A decay that is rounded away (gradient zero, value not) counts; a zero that
  stays zero does not. Where an fp32 scale moves a whole block each step, the codes are compared instead of the values.
* **predicted**: what theory gives for the ages that the counted updates met, averaged over them.
* **lag**: median of ``log(stored / shadow)``, the shadow being the same EMA kept in float64 on the sample since the
  monitor was attached. ``ratio`` is the mean stored value over the mean of the shadow (of magnitudes, where signed).
* **off 2x**: share of coordinates more than a factor of two away from their shadow.
* **factor**, **residual**, of averages of squares: Adam divides by the root of such a state. `factor` is how much
  longer all updates are than those of the shadow, which a learning rate divided by it takes out; `residual` is the mean
  squared error that is left then, relative to the mean square of an update.
* **weights**: for 16-bit parameters, the share of weights that stood still although their update was not zero, and how
  much of the intended movement took place (``weights_moved``; 1 is right). The update is computed in float64 from the
  optimizer's own rule where it is known; elsewhere a weight counts as due if its gradient or first moment is not zero.
"""

from __future__ import annotations

from halfulp.monitor.callbacks import lightning_callback, trainer_callback
from halfulp.monitor.gradients import GradientSample
from halfulp.monitor.loggers import log_to
from halfulp.monitor.results import Measure
from halfulp.monitor.table import MonitorTable, Row
from halfulp.monitor.watch import StallMonitor

__all__ = [
    "GradientSample",
    "Measure",
    "MonitorTable",
    "Row",
    "StallMonitor",
    "lightning_callback",
    "log_to",
    "trainer_callback",
]
