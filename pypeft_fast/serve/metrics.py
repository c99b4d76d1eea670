"""What the server counts, in Prometheus' text format."""

import time

import prometheus_client as prometheus

from .generation import End, Generation
from .rate import Rate

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # bounds of the buckets of times


class Metrics:
    """The counters of one server. Labels are names of loaded adapters alone, so that clients cannot make new ones."""

    def __init__(self):
        self.registry = prometheus.CollectorRegistry()
        self.rate = Rate()
        own = {"registry": self.registry}
        prefix = "pypeft_fast_"
        self._requests = prometheus.Counter(
            f"{prefix}requests",
            "Requests that have ended, and how.",
            ("adapter", "end"),
            **own,
        )
        self._prompts = prometheus.Counter(f"{prefix}prompt_tokens", "Tokens of prompts.", ("adapter",), **own)
        self._tokens = prometheus.Counter(f"{prefix}generated_tokens", "Tokens of answers.", ("adapter",), **own)
        self._first = prometheus.Histogram(
            f"{prefix}first_token_seconds", "From a request to its first token.", buckets=SECONDS, **own
        )
        self._whole = prometheus.Histogram(
            f"{prefix}request_seconds", "From a request to its end.", buckets=SECONDS, **own
        )
        self._steps = prometheus.Histogram(f"{prefix}step_seconds", "One token of all rows.", buckets=SECONDS, **own)
        self._waiting = prometheus.Gauge(f"{prefix}waiting_requests", "Requests that wait for a row.", **own)
        self._running = prometheus.Gauge(f"{prefix}running_requests", "Rows of the batch.", **own)
        self._adapters = prometheus.Gauge(f"{prefix}adapters", "Loaded adapters.", **own)
        rate = prometheus.Gauge(f"{prefix}tokens_per_second", "Generated, over the last ten seconds.", **own)
        rate.set_function(self.rate.now)

    def watch(self, scheduler) -> None:
        """Reads the gauges from this scheduler."""
        self._waiting.set_function(lambda: scheduler.waiting)
        self._running.set_function(lambda: scheduler.running)
        self._adapters.set_function(lambda: len(scheduler.adapters.all()) - 1)

    def text(self) -> bytes:
        return prometheus.generate_latest(self.registry)

    def joined(self, generations: list[Generation]) -> None:
        for generation in generations:
            self._prompts.labels(generation.adapter.name).inc(len(generation.prompt))

    def token(self, generation: Generation) -> None:
        if len(generation.row.answer) == 1:
            self._first.observe(time.monotonic() - generation.begun)
        self._tokens.labels(generation.adapter.name).inc()
        self.rate.add(1)

    def stepped(self, seconds: float) -> None:
        self._steps.observe(seconds)

    def ended(self, generation: Generation, end) -> None:
        how = end.reason if isinstance(end, End) else "cancelled" if generation.is_cancelled else "error"
        self._requests.labels(generation.adapter.name, how).inc()
        self._whole.observe(time.monotonic() - generation.begun)

    def forget(self, name: str) -> None:
        """Removes the counters of an adapter that is no longer loaded, so that their number stays bounded."""
        for counter in (self._prompts, self._tokens, self._requests):
            counter.remove_by_labels({"adapter": name})
