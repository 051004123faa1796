"""Numbers the engine emits about itself. Plain dataclasses: metrics subscribe to them, the engine knows no metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class StepStats:
    """One step. Seconds are 0.0 when the engine was given no clock.

    num_rows: requests computed (the batch size). num_tokens: tokens computed, of which num_sampled ended in a draw.
    num_running, num_waiting: after the step. num_free_blocks counts cached blocks that nobody uses as free.
    prefix_tokens_asked / prefix_tokens_hit: tokens of the requests admitted in this step (those that come back from a
    preemption included), and how many of them came from the prefix cache.
    num_preemptions: requests sent back to the queue in this step.
    num_finished: requests that ended in this step, for whatever reason.
    execute_seconds is forward plus draw; sample_seconds is the draw alone where the runner measures it.
    """

    num_rows: int = 0
    num_tokens: int = 0
    num_sampled: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    prefix_tokens_asked: int = 0
    prefix_tokens_hit: int = 0
    num_preemptions: int = 0
    num_finished: int = 0
    schedule_seconds: float = 0.0
    execute_seconds: float = 0.0
    sample_seconds: float = 0.0
    update_seconds: float = 0.0


@dataclass(slots=True)
class EngineStats:
    """Sums over the engine's life; differences between two readings are rates."""

    num_steps: int = 0
    num_requests: int = 0
    num_finished: int = 0
    num_tokens_computed: int = 0
    num_tokens_sampled: int = 0
    prefix_tokens_asked: int = 0
    prefix_tokens_hit: int = 0
    num_preemptions: int = 0

    def add(self, step: StepStats) -> None:
        """Count one step in."""
        self.num_steps += 1
        self.num_finished += step.num_finished
        self.num_tokens_computed += step.num_tokens
        self.num_tokens_sampled += step.num_sampled
        self.prefix_tokens_asked += step.prefix_tokens_asked
        self.prefix_tokens_hit += step.prefix_tokens_hit
        self.num_preemptions += step.num_preemptions
