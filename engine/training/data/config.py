"""What may be chosen about the data of a training job."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Method: TypeAlias = Literal["supervised", "dpo", "kto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """``max_length`` is in tokens, prompt and answer together; what is beyond it is cut off.

    ``prompt_loss_weight`` is how much the tokens that are no answer count in the loss, from 0
    (learn the answers alone) to 1. Raises ``ValueError``.
    """

    method: Method = "supervised"
    max_length: int = 1024
    prompt_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in ("supervised", "dpo", "kto"):
            raise ValueError(f"method is {self.method!r}; it must be supervised, dpo or kto")
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 2")
        if not 0.0 <= self.prompt_loss_weight <= 1.0:
            raise ValueError(
                f"prompt_loss_weight is {self.prompt_loss_weight}; it must be between 0 and 1"
            )
        if self.method != "supervised" and self.prompt_loss_weight:
            raise ValueError(
                f"prompt_loss_weight is for supervised training; leave it out for {self.method}"
            )
