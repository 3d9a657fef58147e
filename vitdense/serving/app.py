"""The web application: a page, a JSON endpoint for images and one for videos.

Uploads are decoded in memory by the rules of `read_image`; a video is written to a temporary file of a name of ours. No
path from a client is opened, and the page loads nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from vitdense.data.files.images import decode_image
from vitdense.errors import DataError, did_you_mean
from vitdense.inference.predictor import Predictor
from vitdense.serving.batching import Batcher, QueueFullError
from vitdense.serving.responses import ErrorRecord, ModelRecord, PredictionRecord, describe, record_of
from vitdense.video.reader import VideoReader
from vitdense.visualize.score_thresholds import MIN_SCORE, MinScore

LOWEST = 0.05  # objects of a lower score are never sent
LOWEST_SCORE = Query(None, ge=LOWEST, le=1, description='of the objects; default: the thresholds of the model')
_BINARY = {'application/octet-stream': {'schema': {'type': 'string', 'format': 'binary'}}}
UPLOAD = {'requestBody': {'required': True, 'content': _BINARY}}
POLICY = (
    "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    'media-src blob:'
)
_REASONS = {
    403: 'a request of the page of another site',
    413: 'too many bytes or pixels',
    415: 'a form; the body of a request is the file itself',
    422: 'no image or video that can be read, or a wrong or unknown parameter',
    429: 'too many images wait',
    500: 'the model failed',
}
FAULTS: dict[int | str, dict[str, Any]] = {
    code: {'description': reason, 'model': ErrorRecord} for code, reason in _REASONS.items()
}


class RequestLimits(NamedTuple):
    """Limits of what a request may ask for."""

    image_bytes: int = 32 * 2**20
    video_bytes: int = 256 * 2**20
    pixels: int = 40_000_000
    frames: int = 600
    waiting: int = 64  # images


def create_app(
    predictor: Predictor,
    *,
    name: str,
    limits: RequestLimits | None = None,
    hosts: Sequence[str] = ('127.0.0.1', 'localhost'),
) -> FastAPI:
    """Return the application that serves `predictor`; requests to other `hosts` are refused (DNS rebinding)."""
    limits = limits or RequestLimits()
    batcher = Batcher(predictor, most_waiting=limits.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title='vitdense', description=f'Predictions of {name}', docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_exception_handler(DataError, _unreadable)
    app.add_exception_handler(QueueFullError, _busy)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(Exception, _failed)
    app.middleware('http')(_same_origin)
    _add_pages(
        app,
        describe(
            name,
            predictor.metainfo,
            predictor.metainfo['head_fields'],
            min_score=MIN_SCORE,
            max_bytes=limits.image_bytes,
            max_frames=limits.frames,
        ),
    )
    _add_endpoints(app, batcher, limits)
    return app


def _add_pages(app: FastAPI, model: ModelRecord) -> None:
    html = resources.files('vitdense.serving').joinpath('page.html').read_text(encoding='utf-8')

    @app.get('/', include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(html, headers={'Content-Security-Policy': POLICY, 'X-Content-Type-Options': 'nosniff'})

    @app.get('/api/model', responses={code: FAULTS[code] for code in (403, 422)}, dependencies=[Depends(_known_query)])
    def served_model() -> ModelRecord:
        """Heads and classes of the model."""
        return model


def _add_endpoints(app: FastAPI, batcher: Batcher, limits: RequestLimits) -> None:
    predictor = batcher.predictor
    checks = [Depends(_known_query), Depends(_file_itself)]

    @app.post('/api/image', responses=FAULTS, openapi_extra=UPLOAD, dependencies=checks)
    async def image(request: Request, min_score: float | None = LOWEST_SCORE) -> PredictionRecord:
        """Predictions of the image file that is the body of the request."""
        content = b''.join([part async for part in _parts(request, limits.image_bytes)])
        img = await asyncio.to_thread(
            decode_image, content, 'the image', max_pixels=limits.pixels, value_range=predictor.value_range
        )
        return await asyncio.to_thread(record_of, await batcher.predict(img), min_score=_or_auto(min_score))

    @app.post('/api/video', responses=FAULTS, openapi_extra=UPLOAD, dependencies=checks)
    async def video(request: Request, min_score: float | None = LOWEST_SCORE, every: int = Query(1, ge=1)) -> Response:
        """Predictions of every n-th frame of the video file that is the body, one JSON object a line (NDJSON)."""
        with tempfile.NamedTemporaryFile(prefix='vitdense-', delete=False) as file:
            path = Path(file.name)
            try:
                async for part in _parts(request, limits.video_bytes):
                    await asyncio.to_thread(file.write, part)
                file.flush()
                reader = await asyncio.to_thread(VideoReader, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        lines = _frames(reader, path, batcher, limits.frames, every=every, min_score=_or_auto(min_score))
        return StreamingResponse(lines, media_type='application/x-ndjson')


def _or_auto(min_score: float | None) -> MinScore:
    return 'auto' if min_score is None else min_score


async def _frames(
    reader: VideoReader, path: Path, batcher: Batcher, most: int, *, every: int, min_score: MinScore
) -> AsyncIterator[str]:
    """Yield a line for every n-th frame, at most `most` of them."""
    try:
        frames, count = iter(reader), 0
        while count < most and (frame := await asyncio.to_thread(next, frames, None)) is not None:
            if frame.index % every:
                continue
            count += 1
            result = await batcher.predict(batcher.predictor.read(frame.image), wait=True)
            record = await asyncio.to_thread(record_of, result, min_score=min_score, seconds=round(frame.seconds, 6))
            yield record.model_dump_json() + '\n'
    finally:
        reader.close()
        path.unlink(missing_ok=True)


async def _parts(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body of a request. Raises HTTPException 413 once it is larger than `limit` bytes."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, f'more than {limit:,} bytes')
        yield part


def _known_query(request: Request) -> None:
    """Raise HTTPException 422 for a query parameter that the endpoint does not have."""
    known = [parameter.alias for parameter in request.scope['route'].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name, known)
            words = f'the parameters are {", ".join(known)}' if known else 'there are none'
            raise HTTPException(422, f"{request.url.path} has no parameter '{name}'{hint}: {words}")


def _file_itself(request: Request) -> None:
    """Raise HTTPException 415 for a form with the file in it."""
    if request.headers.get('content-type', '').startswith('multipart/'):
        url = request.url.replace(query='')
        raise HTTPException(415, f'the body is a form; send the file itself: curl --data-binary @FILE {url}')


async def _same_origin(request: Request, call_next: Any) -> Response:
    """Refuse requests that pages of other sites send."""
    origin = request.headers.get('origin')
    if origin is not None and origin.partition('://')[2] != request.headers.get('host'):
        return JSONResponse({'detail': 'requests of other sites are refused'}, 403)
    return await call_next(request)


async def _unreadable(_: Request, error: Exception) -> Response:
    assert isinstance(error, DataError)
    code = 413 if ' Mpx > limit ' in error.message else 422
    return JSONResponse({'detail': f'{error.message}: {error.why}'}, code)


async def _wrong_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f'{fault["loc"][-1]}={fault.get("input")!r}: {fault["msg"]}' for fault in error.errors()]
    return JSONResponse({'detail': '; '.join(faults)}, 422)


async def _failed(_: Request, error: Exception) -> Response:
    """Return a response without the error, which the log of the server has."""
    return JSONResponse({'detail': f'the model failed: {type(error).__name__}; see the log of the server'}, 500)


async def _busy(_: Request, error: Exception) -> Response:
    return JSONResponse({'detail': 'too many images wait'}, 429, {'Retry-After': '1'})
