"""The models that this daemon hosts: loading, replacing and unloading them.

A load reads the model store anew, verifies the compiled artifact, and happens beside everything
that is being served; when the new version serves, the old one gets no more calls and leaves
when its last one ends. A model that cannot be loaded is shown as failed and stops nobody else.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator

from appliance.compiler import Artifact, open_artifact
from appliance.config import Config
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.device.recordings import beside_recordings
from appliance.engine.loaded import LoadedModel, open_model
from appliance.engine_daemon import watchdog
from appliance.engine_daemon.faults import describe
from appliance.engine_daemon.hosted import HostedModel, State
from appliance.errors import ApplianceError, NotFoundError, UnavailableError
from appliance.model_store import ModelStore, StoredBundle
from appliance.trust.node_key import PUBLIC_NAME, NodePublicKey

_log = logging.getLogger(__name__)

Changed = Callable[[str, bool], Awaitable[None]]
"""Awaited with a model's name and whether it is served now."""


class ModelRegistry:
    """Models by name. Lives on the event loop."""

    def __init__(self, config: Config, changed: Changed) -> None:
        self._config = config
        self._changed = changed
        self._store = ModelStore(config.layout.models)
        self._budget = CacheBudget.from_settings(config.engine)
        self._hosted: list[HostedModel] = []
        self._loads: dict[str, asyncio.Task[HostedModel]] = {}
        self._one_load = asyncio.Lock()
        self._drains: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.watched = False
        """Somebody was told that the daemon serves, and expects signs of life from then on."""

    @property
    def cache_budget(self) -> CacheBudget:
        return self._budget

    def all(self) -> list[HostedModel]:
        """Every hosted model, whatever its state, by name."""
        return sorted(self._hosted, key=lambda hosted: hosted.bundle.name)

    @property
    def step_seconds(self) -> float:
        """How long the longest step under way has lasted."""
        return max((hosted.step_seconds for hosted in self._hosted), default=0.0)

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded."""
        return any(hosted.state is State.LOADING for hosted in self._hosted)

    def serving(self, name: str) -> HostedModel:
        """The version of `name` that takes calls. Raises NotFoundError, UnavailableError."""
        if self._stopping:
            raise UnavailableError("the engine is stopping", hint="try again in a moment")
        found = self._find(name, State.SERVING)
        if found is not None:
            return found
        if self._find(name, State.LOADING) is not None:
            raise UnavailableError(
                f"the model {name} is being loaded", hint="try again soon", code="model_loading"
            )
        failed = self._find(name, State.FAILED)
        if failed is not None:
            raise NotFoundError(
                f"the model {name} could not be loaded: {failed.error}",
                hint="`appliance status` shows the state of each model",
                code="model_not_found",
            )
        raise NotFoundError(
            f"the model {name!r} is not served here",
            hint="ask for the list of models",
            code="model_not_found",
        )

    def called(self, name: str) -> tuple[HostedModel, HostedModel | None]:
        """Who computes the calls to `name`, and the adapter with which, if it is one.

        Raises as `serving` does, also for an adapter's base.
        """
        found = self.serving(name)
        spec = found.bundle.manifest.as_adapter
        return (found, None) if spec is None else (self.serving(spec.base.name), found)

    async def expect_active(self) -> None:
        """Show every model of the current generation as being loaded; nothing is loaded yet."""
        try:
            active = await asyncio.to_thread(self._store.active)
            # An adapter is loaded into its base.
            names = sorted(active, key=lambda name: active[name].manifest.kind == "adapter")
        except ApplianceError as error:
            _log.error("the model store cannot be read: %s", error.message)
            return
        self._hosted += [HostedModel(active[name]) for name in names]

    async def load_active(self) -> None:
        """Load every model that is expected; failures are shown, not raised."""
        for expected in list(self._hosted):
            try:
                await self.load(expected.bundle.name)
            except ApplianceError:
                continue  # shown as failed, and logged

    async def load(self, name: str) -> HostedModel:
        """Serve the version of `name` that the store says is active; at once if it is served.

        A caller that goes away does not stop the load. Raises what loading raises.
        """
        task = self._loads.get(name)
        if task is None:
            task = self._loads[name] = asyncio.create_task(self._load(name))
            task.add_done_callback(functools.partial(self._loaded, name))
        return await asyncio.shield(task)

    async def unload(self, name: str) -> None:
        """Stop admitting to `name`, wait for its calls, free its memory. Raises NotFoundError."""
        versions = [hosted for hosted in self._hosted if hosted.bundle.name == name]
        if not versions:
            raise NotFoundError(f"the model {name!r} is not served here", code="model_not_found")
        await self._changed(name, False)
        await asyncio.gather(*(asyncio.shield(self._retire(hosted)) for hosted in versions))

    def stop_admitting(self) -> None:
        """Refuse every new call from now on."""
        self._stopping = True

    async def finish(self, seconds: float) -> None:
        """Let calls under way end by themselves for `seconds`, then cancel what is left."""
        idle = asyncio.gather(*(hosted.wait_idle() for hosted in self._hosted))
        try:
            await asyncio.wait_for(asyncio.shield(idle), seconds)
        except TimeoutError:
            for hosted in self._hosted:
                hosted.cancel_all()
            await idle

    async def close(self) -> None:
        """Free everything."""
        for task in (*self._loads.values(), *self._drains):
            task.cancel()
        await asyncio.gather(*self._loads.values(), *self._drains, return_exceptions=True)
        for hosted in self._hosted:
            await hosted.close()
        self._hosted.clear()

    def _loaded(self, name: str, task: asyncio.Task[HostedModel]) -> None:
        del self._loads[name]
        if not task.cancelled():
            task.exception()  # looked at, in case that nobody waits any more

    async def _load(self, name: str) -> HostedModel:
        async with self._one_load:
            try:
                bundle = await asyncio.to_thread(self._active_bundle, name)
            finally:
                self._forget(name, State.LOADING)  # it was expected, perhaps in another version
            current = self._find(name, State.SERVING)
            if current is not None and current.bundle.digest == bundle.digest:
                return current
            self._forget(name, State.FAILED)
            hosted = HostedModel(bundle)
            self._hosted.append(hosted)
            if self.watched:
                watchdog.say(self)  # more patience, before the load holds everything up
            try:
                serve = await self._opened(hosted)
            except asyncio.CancelledError:
                self._hosted.remove(hosted)
                raise
            except Exception as error:
                raise await self._failed(hosted, error, still_served=current is not None) from error
            serve()
            await self._changed(name, True)
            _log.info("%s %s serves", name, bundle.version)
            if isinstance(hosted.model, ChatModel) and hosted.model.draft_unused:
                _log.info("%s %s: %s", name, bundle.version, hosted.model.draft_unused)
        if current is not None:
            self._retire(current)
        return hosted

    async def _opened(self, hosted: HostedModel) -> Callable[[], None]:
        """Load what `hosted` is to serve; what is returned makes it do so."""
        bundle = hosted.bundle
        spec = bundle.manifest.as_adapter
        if spec is not None:
            base = self.serving(spec.base.name)
            await asyncio.to_thread(base.chat.adapters.add, bundle)
            return lambda: hosted.serve_with(base)
        model, artifact = await self._open_in_thread(bundle)
        if artifact.provider != "cpu":
            beside_recordings()  # what is left of a model may be freed in this thread
        adapters = self._adapters_of(bundle.name)
        try:
            for adapter in adapters:
                assert isinstance(model, ChatModel), "the store has looked: these are its adapters"
                await asyncio.to_thread(model.adapters.add, adapter.bundle)
        except BaseException:
            model.close()
            raise

        def serve() -> None:
            hosted.serve(model, artifact)
            for adapter in adapters:
                adapter.base = hosted

        return serve

    def _adapters_of(self, base: str) -> list[HostedModel]:
        """The adapters that are served with the model `base`."""
        return [
            hosted
            for hosted in self._hosted
            if hosted.state is State.SERVING
            and hosted.bundle.manifest.as_adapter is not None
            and hosted.bundle.manifest.as_adapter.base.name == base
        ]

    async def _forget_adapter(self, adapter: HostedModel) -> None:
        """Take an adapter that nobody calls any more out of its base, unless it came back."""
        async with self._one_load:
            digest, base = adapter.bundle.digest, adapter.base
            back = any(h.bundle.digest == digest and h is not adapter for h in self._hosted)
            if not back and base is not None and isinstance(base.model, ChatModel):
                await asyncio.to_thread(base.model.adapters.remove, digest)

    async def _failed(
        self, hosted: HostedModel, error: Exception, *, still_served: bool
    ) -> ApplianceError:
        """Show that a model could not be loaded; the error for whoever asked for it."""
        if not isinstance(error, ApplianceError):
            error = UnavailableError(
                f"the model could not be loaded: {describe(error)}",
                hint="look for the same line in the engine's log",
            )
        hosted.fail(error)
        _log.error(
            "%s %s was not loaded: %s", hosted.bundle.name, hosted.bundle.version, error.message
        )
        await self._changed(hosted.bundle.name, still_served)
        return error

    def _active_bundle(self, name: str) -> StoredBundle:
        bundle = self._store.active().get(name)
        if bundle is None:
            raise NotFoundError(
                f"the model {name!r} is not active on this node",
                hint="`appliance models activate` makes it so",
                code="model_not_found",
            )
        return bundle

    async def _open_in_thread(self, bundle: StoredBundle) -> tuple[LoadedModel, Artifact]:
        """As `_open`. A thread cannot be cancelled: what it opens for nobody is closed."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._open, bundle))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if opening.exception() is None:
                model, _ = opening.result()
                await asyncio.to_thread(model.close)
            raise

    def _open(self, bundle: StoredBundle) -> tuple[LoadedModel, Artifact]:
        layout = self._config.layout
        node_key = NodePublicKey.load(layout.node / PUBLIC_NAME)
        artifact = open_artifact(layout.artifacts, bundle.digest, node_key, self._config.engine)
        model = open_model(bundle, artifact, self._config.engine, self._budget)
        return model, artifact

    def _retire(self, hosted: HostedModel) -> asyncio.Task[None]:
        """Drain and free a model in the background."""
        hosted.drain()

        async def leave() -> None:
            await hosted.wait_idle()
            await self._forget_adapter(hosted)
            await hosted.close()
            if hosted in self._hosted:
                self._hosted.remove(hosted)
            _log.info("%s %s is unloaded", hosted.bundle.name, hosted.bundle.version)

        task = asyncio.create_task(leave())
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)
        return task

    def _forget(self, name: str, state: State) -> None:
        while (found := self._find(name, state)) is not None:
            self._hosted.remove(found)

    def _find(self, name: str, state: State) -> HostedModel | None:
        matching: Iterator[HostedModel] = (
            h for h in self._hosted if h.bundle.name == name and h.state is state
        )
        return next(matching, None)
