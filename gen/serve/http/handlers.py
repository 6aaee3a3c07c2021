"""What the application answers where a request is refused before an endpoint has it, or an endpoint raises."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from gen.serve.http.errors import answer, answer_error
from gen.serve.http.fields import describe_validation
from gen.serve.jobs import ServeError


def add_handlers(app: FastAPI) -> None:
    """Make them known to an application."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, where = describe_validation(list(error.errors()), error.body)
        status = 400 if request.url.path.startswith("/v1") else 422
        return answer(request.url.path, status, message[:2000], where)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        text = str(error.detail)
        if error.status_code == 404 and text == "Not Found":
            text = f"There is no {request.url.path[:200]!r} here; /openapi.json lists what there is."
        elif error.status_code == 405:
            text = f"{request.url.path[:200]!r} does not take {request.method[:20]}."
        elif error.status_code == 400:
            text = "The body cannot be read; send it as /openapi.json says."
        return answer(request.url.path, error.status_code, text, headers=error.headers)

    @app.exception_handler(ServeError)
    async def served(request: Request, error: ServeError) -> JSONResponse:
        return answer_error(request.url.path, error)

    @app.exception_handler(ValueError)
    async def wrong(request: Request, error: ValueError) -> JSONResponse:
        return answer_error(request.url.path, error)
