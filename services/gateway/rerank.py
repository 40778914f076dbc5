"""Reranking in two shapes: Cohere's, which Jina and vLLM have too, and that of Text Embeddings Inference.

Sources: Cohere's API reference, v1 and v2 rerank, and its Python client 7.3; TEI's
`router/src/http/types.rs`, RerankRequest and Rank.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from plaudit import clients
from services.gateway.asking import PROBLEMS, RewardService, naming
from services.gateway.foreign import Foreign, Truncation, has_key, sigmoid
from services.gateway.paths import OPTIONS, Paths
from services.gateway.upstream import Upstream
from services.rpc import logs

router = APIRouter(tags=["Reranking"], responses=PROBLEMS)


class Document(BaseModel):
    """A document with fields of the caller's own; its text is what counts."""

    text: str


DocumentOrText = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Document, Tag("<document>")],
    Discriminator(lambda value: "<document>" if isinstance(value, dict) else "<text>"),
]


class RerankRequest(Foreign):
    """Cohere's shape."""

    query: str
    documents: list[DocumentOrText]
    top_n: int | None = Field(None, ge=0, description="Give only so many of the best; all for none or 0.")
    return_documents: bool = False
    rank_fields: list[Literal["text"]] | None = Field(None, description="Only the text counts here.")
    truncation: Truncation = Field("error", description="Not Cohere's: what becomes of documents too long.")

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class RerankResult(BaseModel):
    """One document in the order."""

    index: int
    relevance_score: float = Field(description="The reward of the document as a response to the query.")
    document: Document | None = None


class RerankResponse(BaseModel):
    """Best first."""

    id: str
    model: str
    results: list[RerankResult]


def _lower(value: Any) -> Any:  # noqa: ANN401
    return value.lower() if isinstance(value, str) else value


class TeiRequest(Foreign):
    """Text Embeddings Inference's shape."""

    query: str
    texts: list[str]
    raw_scores: bool = Field(False, description="The model's output as it is, instead of its sigmoid.")
    return_text: bool = False
    truncate: bool | None = Field(False, description="Cut texts that are too long, instead of refusing them.")
    truncation_direction: Annotated[Literal["left", "right"], BeforeValidator(_lower)] = "right"


class TeiRank(BaseModel):
    """One text in the order."""

    index: int
    score: float
    text: str | None = None


AnyRequest = Annotated[
    Annotated[RerankRequest, Tag("<documents>")] | Annotated[TeiRequest, Tag("<texts>")],
    Discriminator(lambda value: "<texts>" if has_key("texts", value) else "<documents>"),
]


@router.post("/rerank", response_model_exclude_none=True)
@router.post("/v1/rerank", response_model_exclude_none=True)
@router.post("/v2/rerank", response_model_exclude_none=True)
async def rerank(request: AnyRequest, reward: RewardService) -> RerankResponse | list[TeiRank]:
    """Orders documents by their reward as responses to the query.

    With `documents` in Cohere's shape, with `texts` in that of Text Embeddings Inference. A document that
    can't be scored fails the request, which names it.
    """
    if isinstance(request, TeiRequest):
        return await _tei(request, reward)
    return await _cohere(request, reward)


async def _cohere(request: RerankRequest, reward: Upstream) -> RerankResponse:
    texts = request.texts()
    ranking = await _rank(
        reward, request, request.query, texts, "documents", request.truncation, request.top_n or None
    )
    results = [
        RerankResult(
            index=each.index,
            relevance_score=each.reward.reward,
            document=Document(text=texts[each.index]) if request.return_documents else None,
        )
        for each in ranking.ranked
    ]
    return RerankResponse(id=logs.request_id.get(), model=ranking.model.model_id, results=results)


async def _tei(request: TeiRequest, reward: Upstream) -> list[TeiRank]:
    truncation = request.truncation_direction if request.truncate else "error"
    ranking = await _rank(reward, request, request.query, request.texts, "texts", truncation)
    return [
        TeiRank(
            index=each.index,
            score=each.reward.raw_reward if request.raw_scores else sigmoid(each.reward.raw_reward),
            text=request.texts[each.index] if request.return_text else None,
        )
        for each in ranking.ranked
    ]


async def _rank(
    reward: Upstream,
    request: Foreign,
    query: str,
    texts: list[str],
    key: str,
    truncation: Truncation,
    top_n: int | None = None,
) -> clients.Ranking:
    with naming(Paths(OPTIONS, (r"^text\b", "query"), (r"^candidates\b", key))):
        return await reward.rank(
            query, texts, top_n=top_n, all_or_nothing=True, model=request.model, truncation=truncation
        )
