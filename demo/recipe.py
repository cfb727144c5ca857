"""What the demo base and its adapters are made from: every number that decides the result."""

from dataclasses import dataclass

from .tasks import CLOSED_TASKS, TASKS

TASK_WEIGHTS: dict[str, float] = {
    **dict.fromkeys(TASKS, 1.0),
    **dict.fromkeys(CLOSED_TASKS, 0.5),
    "contain": 2.0,
    "compare": 1.5,
}

# Once answers come, the open tasks that adapters are scored on get most of the practice.
STYLED_WEIGHTS: dict[str, float] = {
    **TASK_WEIGHTS,
    "contain": 0.5,
    "multiply": 0.25,
    "later": 0.25,
    "parity": 1.5,
    "compare": 2.0,
}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

SCORED = ("count", "parity", "compare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the training: how often each task is drawn, and how much is asked in a style."""

    until_step: int
    task_weights: dict[str, float]
    style_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """Everything that decides what the base becomes.

    Plain answers come first, styles on request after them. Tasks that copy words are left out: on
    two cores without bf16 units copying needs more training than a demo is worth.
    """

    seed: int = 1
    phases: tuple[Phase, ...] = (
        Phase(until_step=800, task_weights=TASK_WEIGHTS, style_share=0.0),
        Phase(until_step=2400, task_weights=STYLED_WEIGHTS, style_share=0.5),
    )
    batch_size: int = 32
    peak_rate: float = 2e-3
    warmup_steps: int = 100
    decay_start: float = 0.6
    rounding_start: float = 0.75
    checkpoint_every: int = 400
    check_every: int = 400
    check_prompts: int = 20

    @property
    def num_steps(self) -> int:
        return self.phases[-1].until_step

    def phase(self, step: int) -> Phase:
        return next(phase for phase in self.phases if step < phase.until_step)

    def rate(self, step: int) -> float:
        """Warm up, hold, then fall linearly to a fiftieth."""
        progress = (step / self.num_steps - self.decay_start) / (1 - self.decay_start)
        return self.peak_rate * min(1.0, (step + 1) / self.warmup_steps) * min(1.0, 1.02 - progress)

    def rounds(self, step: int) -> bool:
        """True in the part of the training that sees weights rounded to NF4."""
        return step >= self.rounding_start * self.num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecipe:
    """Everything that decides what one adapter becomes, and what it is scored on."""

    name: str
    rank: int
    scored_tasks: tuple[str, ...]
    style: str | None = None
    task_weights: tuple[tuple[str, float], ...] = tuple(STYLED_WEIGHTS.items())
    targets: tuple[str, ...] = EVERY_LINEAR
    use_rslora: bool = False
    alpha: int = 16
    seed: int = 1
    num_steps: int = 300
    batch_size: int = 32
    peak_rate: float = 1e-3

    def rate(self, step: int) -> float:
        """Warm up over twenty steps, then fall linearly to zero."""
        return self.peak_rate * min((step + 1) / 20, 1 - step / self.num_steps)


ADAPTERS: tuple[AdapterRecipe, ...] = (
    AdapterRecipe(name="json", rank=8, style="json", scored_tasks=SCORED),
    AdapterRecipe(name="shout", rank=4, style="shout", scored_tasks=SCORED),
    AdapterRecipe(name="formal", rank=8, style="formal", scored_tasks=SCORED),
    AdapterRecipe(
        name="pirate",
        rank=16,
        style="pirate",
        scored_tasks=SCORED,
        targets=ATTENTION,
        use_rslora=True,
    ),
)
