"""Workers that synchronize periodically: local SGD, gossip and others, on ``torch.distributed`` and in low precision.

Each worker trains with its own optimizer and exchanges messages with the others at regular intervals. Each method is a
wrapper around that optimizer; see ``docs/workers.md``.
"""

from halfulp.workers.asynchronous import AsyncEASGD, AsyncLGRAWA, AsyncMGRAWA
from halfulp.workers.averaging import DPSGD, LocalSGD, VarianceCorrected
from halfulp.workers.graphs import Graph, Matchings, RandomPairs, complete, ring
from halfulp.workers.group import Alone, Peers, WorkerLostError, simulate
from halfulp.workers.meeting import Meeting, meeting
from halfulp.workers.method import Method, Seen
from halfulp.workers.one_bit import OneBitAdam
from halfulp.workers.outer import DiLoCo, FedAdagrad, FedAdam, FedAvg, FedYogi, SlowMo
from halfulp.workers.pulling import ALDSGD, DPPF, EASGD, LGRAWA, MGRAWA
from halfulp.workers.service import Centre
from halfulp.workers.stall import MessageError, message_error, pull_stall
from halfulp.workers.valley import inverse_mean_valley

METHODS = (
    ALDSGD, DPPF, DPSGD, DiLoCo, EASGD, FedAdagrad, FedAdam, FedAvg, FedYogi, LGRAWA, LocalSGD, MGRAWA, SlowMo,
    VarianceCorrected,
)  # fmt: skip
"""All synchronous methods."""

__all__ = [
    "ALDSGD", "DPPF", "DPSGD", "EASGD", "LGRAWA", "METHODS", "MGRAWA", "Alone", "AsyncEASGD", "AsyncLGRAWA",
    "AsyncMGRAWA", "Centre", "DiLoCo", "FedAdagrad", "FedAdam", "FedAvg", "FedYogi", "Graph", "LocalSGD",
    "Matchings", "Meeting", "MessageError", "Method", "OneBitAdam", "Peers", "RandomPairs", "Seen", "SlowMo",
    "VarianceCorrected", "WorkerLostError", "complete", "inverse_mean_valley", "meeting", "message_error",
    "pull_stall", "ring", "simulate",
]  # fmt: skip
