"""Chat templates that adapters bring: ignored, unless the operator lets them be used."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from multiflora.adapters.store import AdapterStore
from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.template_renderer import Renderer, TemplateRenderer

from .catalog import ServedModel

_MAX_KEPT: Final = 256


class AdapterTemplates:
    """Without a ``store`` nobody has one: all chats are rendered by the base's.

    ``own`` renders them, beside the base's, so that no slow one stands before other chats.
    """

    def __init__(
        self, store: AdapterStore | None = None, own: TemplateRenderer | None = None
    ) -> None:
        self._read = None if store is None else lru_cache(_MAX_KEPT)(_reader(store))
        self._own = own

    async def stop(self) -> None:
        if self._own is not None:
            await self._own.stop()

    def renderer(self, base: Renderer, model: ServedModel) -> Renderer:
        """``base``, or what uses the template of the one adapter that answers, if it brought one.

        A blend has the base's. Raises ``AdapterRejected`` for a version that is damaged.
        """
        if self._read is None or len(model.parents) != 1 or model.parents[0].weight != 1.0:
            return base
        template = self._read(model.parents[0].digest)
        return base if template is None else _OwnTemplate(self._own or base, template)


@dataclass(frozen=True, slots=True)
class _OwnTemplate:
    """Renders within the limits of the base's template."""

    shared: Renderer
    template: str

    async def render(self, messages: Any, *, tools: Sequence[Any] = (), **options: Any) -> str:
        if tools:
            raise RequestRejected(
                "this adapter has a chat template of its own, but calls are read in the way of the "
                "base's; ask the base, or leave tools out",
                param="tools",
            )
        return await self.shared.render(messages, template=self.template, **options)


def _reader(store: AdapterStore) -> Any:
    def read(digest: str) -> str | None:
        return store.open(digest).template

    return read
