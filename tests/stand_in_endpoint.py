"""A server of OpenAI's completions that streams, hangs, fails or talks rubbish as its models' names say."""

from __future__ import annotations

import asyncio
import json
import threading

from aiohttp import web

DELAY = 0.01
"""Seconds between tokens of the stand-in."""


class StandIn:
    """A server whose models are told what to do by their names; a strict one knows the protocol alone."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.seen: list[dict[str, object]] = []
        self.at_once = self.most_at_once = 0
        self.loop = asyncio.new_event_loop()
        self.started = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self.started.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app)
        self.loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.started.set()
        self.loop.run_forever()

    def stop(self) -> None:
        """Answer nobody any more."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request, body, str(body["model"]))
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request, body: dict[str, object], model: str) -> web.StreamResponse:
        if self.strict and "ignore_eos" in body:
            return web.Response(status=422, text="{'detail': \"Unexpected fields: {'ignore_eos'}\"}")
        if model == "fails":
            return web.Response(status=500, text="out of\nmemory")
        if model == "hangs":
            await asyncio.sleep(60)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        if model == "rubbish":
            await stream.write(b"<html>proxy error</html>\n\n")
            return stream
        if model == "broken":
            await stream.write(b"data: {not json\n\n")
            return stream
        if model == "says":
            await stream.write(b'data: {"error": {"message": "too long"}}\n\n')
            return stream
        await stream.write(b": a comment\n\n")
        for number in range(int(str(body["max_tokens"]))):
            await asyncio.sleep(DELAY)
            text = f" {'base' if model == 'ignored' else model}{number}"
            event = {"choices": [{"text": text, "index": 0}]}
            await stream.write(f"data: {json.dumps(event)}\n\n".encode())
            if model == "cut" and number == 1:
                return stream
        if self.strict:
            await stream.write(b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n')
            return stream
        await stream.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')
        return stream
