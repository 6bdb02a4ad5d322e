"""Who may start what, in one place: every route that computes goes through here.

`generation.admitted` passes text through it, the embeddings endpoint vectors, the rerank and score
endpoints scores; a new route that
generates calls `admitted` and needs nothing else. Owns the order: the key's models, then the most
that the request can use, then the reservation for the key and its project together. What it holds
is settled with the bill, or given back when the request leaves without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from appliance.access import KeyInfo
from appliance.errors import RequestError
from appliance.metering import Demand, Limiter, PriceTable, Reservation, Subject, Tariff
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.engine_client import EngineClient
from appliance.shim.exchange import Exchange

_SPECIAL_TOKENS = 4
_FILL_IN_TOKENS = 3
"""More than a tokenizer puts around one text."""


class Admission:
    """The gate between what a caller asks for and the engine."""

    def __init__(self, engine: EngineClient, limiter: Limiter, prices: PriceTable) -> None:
        self._engine = engine
        self._limiter = limiter
        self._prices = prices

    @asynccontextmanager
    async def generation(
        self, exchange: Exchange, requests: Sequence[pb.GenerateRequest]
    ) -> AsyncIterator[Reservation]:
        """Reserve what `requests` can use; an answer without a limit is given what there is.

        Raises RequestError, QuotaError, RateLimitError, and the engine's refusal of a prompt.
        """
        key = allowed(exchange)
        tariff = self._tariff(exchange)
        if _counts_tokens(key):
            demand = await self._measure(tariff, requests)
        else:
            demand = Demand(tariff)
        with self._reserved(exchange, key, demand) as reservation:
            if demand.open_ended and reservation.allowance < demand.most:
                for request in requests:
                    request.sampling.max_tokens = reservation.allowance
            yield reservation

    @asynccontextmanager
    async def embedding(
        self, exchange: Exchange, request: pb.EmbedRequest
    ) -> AsyncIterator[Reservation]:
        """Reserve what `request` can use. No text has more tokens than bytes, specials apart."""
        key = allowed(exchange)
        prompt = sum(_bytes_of(item) + _SPECIAL_TOKENS for item in request.inputs)
        with self._reserved(exchange, key, Demand(self._tariff(exchange), prompt)) as reservation:
            yield reservation

    @asynccontextmanager
    async def scoring(
        self, exchange: Exchange, request: pb.ScoreRequest
    ) -> AsyncIterator[Reservation]:
        """Reserve what `request` can use, by the same rule. Each pair has its query anew."""
        key = allowed(exchange)
        demand = Demand(self._tariff(exchange))
        if _counts_tokens(key):
            models = await self._engine.models()
            around = max((m.pair_tokens for m in models if m.name == request.model), default=0)
            around += len(request.instruction.encode())
            demand = Demand(demand.tariff, _pair_bytes(request) + around * len(request.documents))
        with self._reserved(exchange, key, demand) as reservation:
            yield reservation

    def _tariff(self, exchange: Exchange) -> Tariff:
        """The price in force now is the request's, even if it changes before the end."""
        exchange.price = self._prices.current(exchange.model)
        return exchange.price.tariff(batch=exchange.batch)

    async def _measure(self, tariff: Tariff, requests: Sequence[pb.GenerateRequest]) -> Demand:
        """The most that `requests` can use: their prompts as the engine counts them."""
        name = requests[0].model
        models, prompts = await asyncio.gather(
            self._engine.models(), asyncio.gather(*map(self._prompt_tokens, requests))
        )
        context = max((m.context_length for m in models if m.name == name), default=0)
        limit = requests[0].sampling.max_tokens
        room = max(1, context - min(prompts))
        return Demand(
            tariff,
            prompt=sum(prompts),
            sequences=sum(request.n or 1 for request in requests),
            most=min(limit, room) if limit else room,
            open_ended=not limit,
        )

    async def _prompt_tokens(self, request: pb.GenerateRequest) -> int:
        match request.WhichOneof("prompt"):
            case "tokens":
                return len(request.tokens.ids)
            case "chat":
                asked = pb.TokenizeRequest(model=request.model, chat=request.chat)
            case "fill_in":
                both = request.fill_in.prefix, request.fill_in.suffix
                asked_of = [pb.TokenizeRequest(model=request.model, text=text) for text in both]
                counts = await asyncio.gather(*map(self._engine.tokenize, asked_of))
                return sum(map(len, counts)) + _FILL_IN_TOKENS
            case _:
                asked = pb.TokenizeRequest(model=request.model, text=request.text)
        return len(await self._engine.tokenize(asked))

    @contextmanager
    def _reserved(self, exchange: Exchange, key: KeyInfo, demand: Demand) -> Iterator[Reservation]:
        subjects = _subjects(key)
        try:
            reservation = self._limiter.reserve(subjects, demand)
        finally:
            exchange.standing = self._limiter.standing(subjects)
        exchange.reservation = reservation
        try:
            yield reservation
        finally:
            reservation.release()


def allowed(exchange: Exchange) -> KeyInfo:
    """The key, if it may use the model. Raises RequestError with code `model_not_allowed`."""
    key = exchange.key
    assert key is not None, "routes that compute need a key"
    if not key.may_use(exchange.model):
        raise RequestError(
            f"the API key may not use the model {exchange.model!r}",
            param="model",
            hint="ask the operator to allow it; GET /v1/models lists those that are",
            code="model_not_allowed",
        )
    return key


def _subjects(key: KeyInfo) -> list[Subject]:
    """Whose limits hold. What the node asks itself is no project's: a budget that is used up must
    not fail the proof of an installation, nor a benchmark use one up."""
    alone = Subject(key.lineage, f"the key {key.id}", key.limits)
    if key.of_node:
        return [alone]
    return [alone, Subject(key.project, f"the project {key.project}", key.project_limits)]


def _counts_tokens(key: KeyInfo) -> bool:
    return key.limits.counts_tokens or key.project_limits.counts_tokens


def _bytes_of(item: pb.EmbedInput) -> int:
    return len(item.text.encode()) if item.HasField("text") else len(item.tokens.ids)


def _pair_bytes(request: pb.ScoreRequest) -> int:
    queries, documents = request.queries, request.documents
    repeated = len(documents) // len(queries)
    return sum(len(q.encode()) * repeated for q in queries) + sum(
        len(d.encode()) for d in documents
    )
