"""An adapter whose memory was taken back, read by a request that is prepared and by the loop at once."""

from __future__ import annotations

import threading
from typing import Any

import kamado
import tiny_pipelines as tiny
from adapter_files import Files
from kamado_models.diffusion.adapters_lora import Lora


def test_what_counts_is_what_was_moved(runtime: kamado.Runtime, files: Files) -> None:
    model = runtime.load(files["sd15"])
    request = {**tiny.arguments("sd15"), "seed": 0, "adapters": [str(files["lora-sd15"])]}
    wanted = model.generate(**request).pixels[0]
    loaded: Any = model.loaded
    adapters = loaded._workshop.adapters
    (adapter,) = adapters._placed
    session: Any = vars(runtime)["_session"]
    assert session.call(adapters._drop_oldest) and adapter.content is None

    read, reading, placing, moved = adapter.read, threading.Event(), threading.Event(), []

    def slow() -> Any:
        content = read()
        if threading.current_thread() is thread:
            reading.set()
            placing.wait(0.5)  # for a loop that does not wait for this
        return content

    def place() -> None:
        adapters._place(adapter)
        moved.append(adapter.content)
        placing.set()

    adapter.read = slow
    order = loaded.order(request)
    thread = threading.Thread(target=lambda: adapters.prepare(order.asked.adapters, order.kind, order.arguments))
    thread.start()
    assert reading.wait(30)
    session.call(place)
    thread.join(30)
    assert isinstance(adapter.content, Lora) and moved == [adapter.content]
    assert (model.generate(**request).pixels[0] == wanted).all()
