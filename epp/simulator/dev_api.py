"""What only `--dev-mode` serves: vLLM's own development endpoints (VLLM_SERVER_DEV_MODE=1), and ours for what goes wrong.

    POST /reset_prefix_cache      {"success": bool}; false while blocks are in use
    POST /sleep?level=1           0: no new steps; 1, 2: the cache is lost too. Running answers end as "abort"
    POST /wake_up   GET /is_sleeping
    GET /faults                   what goes wrong, and how many batches each fault has met
    POST /faults                  from now on these (epp.simulator.faults.Faults) and no others
    DELETE /faults                nothing any more
    POST /restart?down_s=0        202; the process dies at once and another one comes back on the same ports
    POST /disconnect              every connection to the KV ports is broken; the pod itself goes on

/faults and /restart answer even while the pod hangs. On the event loop, beside `api.PodApi` in one application.
"""

from typing import Protocol

import msgspec
from aiohttp import web

from epp.simulator import faults
from epp.simulator.errors import ApiError
from epp.simulator.faults import FaultInjector, Faults
from epp.simulator.pod import Pod

MAX_DOWN_S = 3600.0

# Where requests get through to a pod that hangs.
ALWAYS_ANSWERED = ("/faults", "/restart")


class Process(Protocol):
    """The process behind the pod."""

    injector: FaultInjector

    def set_faults(self, faults: Faults) -> None:
        """From now on these and no others go wrong."""

    def restart(self, down_s: float) -> None:
        """Die now, and come back after so many seconds."""

    def cut(self) -> None:
        """Break every connection to the KV ports."""


class DevApi:
    """The routes of one pod."""

    def __init__(self, pod: Pod, process: Process) -> None:
        self._pod = pod
        self._process = process

    def add_routes(self, app: web.Application) -> None:
        """Serve them too."""
        app.router.add_post("/reset_prefix_cache", self._reset_prefix_cache)
        app.router.add_post("/sleep", self._sleep)
        app.router.add_post("/wake_up", self._wake_up)
        app.router.add_get("/is_sleeping", self._is_sleeping)
        app.router.add_get("/faults", self._faults)
        app.router.add_post("/faults", self._set_faults)
        app.router.add_delete("/faults", self._clear_faults)
        app.router.add_post("/restart", self._restart)
        app.router.add_post("/disconnect", self._disconnect)

    async def _reset_prefix_cache(self, http: web.Request) -> web.Response:
        for name in ("reset_running_requests", "reset_external"):
            if http.query.get(name, "false").lower() not in ("false", "0"):
                raise ApiError(f"{name} is not simulated", param=name)
        return web.json_response({"success": self._pod.engine.reset_prefix_cache()})

    async def _sleep(self, http: web.Request) -> web.Response:
        level = http.query.get("level", "1")
        if level not in ("0", "1", "2"):
            raise ApiError(f"level must be 0, 1 or 2, not {level!r}", param="level")
        if http.query.get("mode", "abort") != "abort":
            raise ApiError("the only mode simulated is abort", param="mode")
        await self._pod.sleep(int(level))
        return web.json_response({"status": "sleeping", "level": int(level)})

    async def _wake_up(self, http: web.Request) -> web.Response:
        if "tags" in http.query:
            raise ApiError("waking up in parts is not simulated", param="tags")
        self._pod.wake_up()
        return web.json_response({"status": "awake", "tags": None})

    async def _is_sleeping(self, http: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": self._pod.sleep_level is not None})

    async def _faults(self, http: web.Request) -> web.Response:
        injector = self._process.injector
        return web.json_response({"faults": msgspec.to_builtins(injector.faults), "met": injector.met})

    async def _set_faults(self, http: web.Request) -> web.Response:
        self._process.set_faults(faults.decode(await http.read()))
        return await self._faults(http)

    async def _clear_faults(self, http: web.Request) -> web.Response:
        self._process.set_faults(faults.NONE)
        return await self._faults(http)

    async def _restart(self, http: web.Request) -> web.Response:
        down_s = _seconds(http.query.get("down_s", "0"))
        self._process.restart(down_s)
        return web.json_response({"status": "restarting", "down_s": down_s}, status=202)

    async def _disconnect(self, http: web.Request) -> web.Response:
        self._process.cut()
        return web.json_response({"status": "disconnected"})


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_DOWN_S:
        raise ApiError(f"down_s must be 0 to {MAX_DOWN_S:.0f} seconds, not {text!r}", param="down_s")
    return value
