"""Numbers for Prometheus, read off the engine when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gen.serve.front import EngineFront
from gen.serve.jobs import ServeJob

BUCKETS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class EngineMetrics:
    """A collector of one engine."""

    def __init__(self, engine: EngineFront) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.answers = Counter("fewstep_answers", "Answers by path and status.", ["path", "status"], registry=self.registry)
        self.jobs = Counter("fewstep_jobs", "Jobs by how they ended.", ["state"], registry=self.registry)
        self.seconds = Histogram(
            "fewstep_job_seconds", "From a job's coming to its end.", registry=self.registry, buckets=BUCKETS
        )

    def ended(self, job: ServeJob) -> None:
        self.jobs.labels(job.state).inc()
        self.seconds.observe(time.monotonic() - job.came)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Of the engine and its models."""
        counts = self.engine.numbers()
        yield CounterMetricFamily("fewstep_pictures", "Pictures that were made.", value=counts.pictures)
        yield CounterMetricFamily("fewstep_rounds", "Rounds of the engine.", value=counts.rounds)
        yield GaugeMetricFamily("fewstep_waiting_pictures", "Pictures that wait.", value=counts.waiting)
        yield GaugeMetricFamily("fewstep_running_pictures", "Pictures on the way.", value=counts.running)
        yield GaugeMetricFamily("fewstep_running_rows", "Their rows.", value=counts.running_rows)
        yield GaugeMetricFamily("fewstep_models_bytes", "Weights of the open models.", value=counts.model_bytes)
        yield CounterMetricFamily("fewstep_evictions", "Models closed for others.", value=counts.evictions)
        passes = CounterMetricFamily("fewstep_passes", "Forward passes of a network or decoder.", labels=["model"])
        rows = CounterMetricFamily("fewstep_rows", "Rows of those.", labels=["model"])
        shared = CounterMetricFamily("fewstep_shared_rows", "Of them, in passes of several pictures.", labels=["model"])
        alone = CounterMetricFamily("fewstep_calls_alone", "Calls that could not share, by reason.", labels=["model", "reason"])
        for name, done in counts.passes.items():
            passes.add_metric([name], done.count)
            rows.add_metric([name], done.rows)
            shared.add_metric([name], done.shared)
            for reason, calls in sorted(done.alone.items()):
                alone.add_metric([name, reason], calls)
        yield from (passes, rows, shared, alone)
