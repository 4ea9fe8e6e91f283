"""What the machine does during a run: processor, memory, disk, network and GPU, by MLflow's own monitor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from pipeline.store import MlflowClient  # which sets what MLflow reads when it is imported

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # isort: skip

logger = logging.getLogger("pipeline.system_metrics")

SAMPLED_EVERY_SECONDS = 10.0
"""From one point to the next, as MLflow does; its variable MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets another."""

ALWAYS_THERE = "system/cpu_utilization_percentage"
"""A metric of every point."""

NOWHERE = "http://store.invalid"
"""The address of the store that the monitor itself would write to; it is never asked."""


class SystemMetrics(SystemMetricsMonitor):
    """Measures the machine in a thread of its own and hands the numbers to whoever logs them.

    MLflow's monitor asks the store before every point whether the run goes on, and ends when the store does not
    answer; this one knows no store. There is a point at every `SAMPLED_EVERY_SECONDS` and one at the end, so that a
    short run has one, too. The GPU is among them where `nvidia-ml-py` (or `pyrsmi`, for AMD's) is installed.

    Args:
        log: takes metrics, named `system/...`, and the point's number; called in the thread.
        first: number of the first point: after those that a resumed run has.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], first: int = 0) -> None:
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells what it does not find
        super().__init__("", sampling_interval=SAMPLED_EVERY_SECONDS, tracking_uri=NOWHERE)
        self.mlflow_logger = _Log(log)
        self._logging_step = first

    def monitor(self) -> None:
        """Measure until it is over; what cannot be measured ends this, and nothing else."""
        try:
            psutil.cpu_percent()  # each answer is the load since the last question
            stopped = False
            while not stopped:
                stopped = self._shutdown_event.wait(self.sampling_interval)
                self.collect_metrics()
                self.publish_metrics(self.aggregate_metrics())
        except Exception as error:  # psutil and the drivers raise their own
            logger.warning("the machine is no longer measured: %s", error)


class _Log:
    """Stands where the monitor expects its own way to the store."""

    data = ()

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        self.log = log

    def record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.log(metrics, step)

    def flush(self) -> None:
        """Nothing is held back."""


def next_point(client: MlflowClient, run_id: str) -> int:
    """The number of the first point that a run does not have."""
    points: list[Any] = client.get_metric_history(run_id, ALWAYS_THERE)
    return max((point.step for point in points), default=-1) + 1
