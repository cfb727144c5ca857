"""The output of a response, item by item, and the events that tell of it."""

import uuid
from typing import Any

from multiflora.engine.text.tool_calls.call import CallDelta, Reading

Event = dict[str, Any]


class ResponseItems:
    """Grows with what is read of an answer; every method returns the events of what it did."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._is_open = False

    def push(self, reading: Reading) -> list[Event]:
        events = self._push_text(reading.content) if reading.content else []
        for call in reading.calls:
            events += self._push_call(call)
        return events

    def close(self, *, status: str = "completed") -> list[Event]:
        """End the last item; an answer without any is an empty message."""
        events = [] if self.items else self._open_message()
        return events + self._close(status)

    def _push_text(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not self._is_open or self.items[-1]["type"] != "message":
            events = self._close() + self._open_message()
        self.items[-1]["content"][0]["text"] += text
        return [*events, self._of_part("response.output_text.delta", delta=text, logprobs=[])]

    def _push_call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if call.id is not None:
            item = {
                "type": "function_call",
                "id": f"fc_{uuid.uuid4().hex}",
                "call_id": call.id,
                "name": call.name,
                "arguments": "",
                "status": "in_progress",
            }
            events = self._close() + self._open(item)
        if call.arguments:
            self.items[-1]["arguments"] += call.arguments
            kind = "response.function_call_arguments.delta"
            events.append(self._of_item(kind, delta=call.arguments))
        return events

    def _open_message(self) -> list[Event]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {
            "type": "message",
            "id": f"msg_{uuid.uuid4().hex}",
            "role": "assistant",
            "content": [],
            "status": "in_progress",
        }
        events = self._open(item)
        self.items[-1]["content"].append(dict(part))
        return [*events, self._of_part("response.content_part.added", part=part)]

    def _open(self, item: dict[str, Any]) -> list[Event]:
        self.items.append(item)
        self._is_open = True
        # What follows changes the item, not the event.
        shown = {**item, "content": []} if "content" in item else dict(item)
        place = len(self.items) - 1
        return [{"type": "response.output_item.added", "output_index": place, "item": shown}]

    def _close(self, status: str = "completed") -> list[Event]:
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            kind = "response.function_call_arguments.done"
            done = [self._of_item(kind, arguments=item["arguments"], name=item["name"])]
        else:
            part = item["content"][0]
            done = [
                self._of_part("response.output_text.done", text=part["text"], logprobs=[]),
                self._of_part("response.content_part.done", part=part),
            ]
        place = len(self.items) - 1
        return [*done, {"type": "response.output_item.done", "output_index": place, "item": item}]

    def _of_item(self, kind: str, **fields: Any) -> Event:
        place = len(self.items) - 1
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": place, **fields}

    def _of_part(self, kind: str, **fields: Any) -> Event:
        return self._of_item(kind, content_index=0, **fields)
