import threading
from types import SimpleNamespace

import pytest

from pipeline import system_metrics
from pipeline.system_metrics import SystemMetrics, next_point


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(system_metrics, "SAMPLED_EVERY_SECONDS", 0.02)


def threads():
    return {thread.name for thread in threading.enumerate()}


def measured(points, log=None, **arguments):
    """(step, metrics) of a monitor that was stopped after so many points."""
    found, enough = [], threading.Event()

    def keep(metrics, step):
        found.append((step, metrics))
        if len(found) == points:
            enough.set()

    if not points:
        enough.set()
    monitor = SystemMetrics(log or keep, **arguments)
    monitor.start()
    enough.wait(5 if log is None else 0.1)
    assert log or "SystemMetricsMonitor" in threads()
    monitor.finish()
    assert "SystemMetricsMonitor" not in threads()
    return found


def test_points_are_numbered_on_from_those_a_run_has(often):
    steps = [step for step, _ in measured(3, first=7)]
    assert steps == list(range(7, 7 + len(steps)))


def test_a_short_run_has_a_point_of_plausible_numbers():
    ((step, metrics),) = measured(0)
    assert step == 0
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage"} <= set(metrics)
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert metrics["system/network_receive_megabytes"] >= 0


def test_what_fails_to_log_stops_the_measuring_and_nothing_else(often, caplog):
    def full(*_):
        raise OSError("disk full")

    measured(1, log=full)
    assert "the machine is no longer measured: disk full" in caplog.text


def test_a_resumed_run_goes_on_after_its_last_point():
    def client(*steps):
        return SimpleNamespace(get_metric_history=lambda *_: [SimpleNamespace(step=step) for step in steps])

    assert [next_point(client(), "r"), next_point(client(0, 2, 1), "r")] == [0, 3]
