"""Environments, their versions, and publications."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from benchgen import schemas
from benchgen.eval.v1 import environment_pb2
from services.gateway.http import documents, openapi
from services.gateway.http.caller import CallerDep
from services.gateway.http.once import OnceDep
from services.gateway.http.paging import PageSize, PageToken
from services.gateway.http.replies import json_response, page_response
from services.gateway.http.uploads import expect_type, upload

router = APIRouter(prefix="/api/v1", tags=["environments"])

#: The path and the largest zip, bytes.
UPLOAD_PATH = "/api/v1/environments"
MAX_UPLOAD_BYTES = 512 << 20

_ZIP = ("application/zip", "application/x-zip-compressed")

Name = Annotated[str, Path(description="`name` or `org/name`.", examples=["gsm8k-mini"])]
VersionNumber = Annotated[str, Path(description="Such as `1.0.0`, or `latest`.", examples=["latest"])]


def reference(name: str, version: str) -> str:
    """How the services call a version."""
    return name if version == "latest" else f"{name}@{version}"


@router.get("/environments", summary="List environments", responses=openapi.answer(documents.EnvironmentPage))
async def list_environments(
    caller: CallerDep, page_size: PageSize = 50, page_token: PageToken = ""
) -> Response:
    """Environments by name."""
    request = environment_pb2.ListEnvironmentsRequest(page_size=page_size, page_token=page_token)
    page = await caller.call(caller.backends.environments.ListEnvironments, request)
    return page_response(page.environments, schemas.environment_json, page.next_page_token)


@router.post(
    UPLOAD_PATH.removeprefix("/api/v1"),
    summary="Upload an environment",
    status_code=HTTPStatus.ACCEPTED,
    responses=openapi.answer(documents.Publication, HTTPStatus.ACCEPTED),
    openapi_extra=openapi.raw_body(
        _ZIP[0], "The folder with `environment.yaml` or `competition.yaml` as a zip, at most 512 MiB."
    ),
)
async def upload_environment(
    request: Request,
    caller: CallerDep,
    once: OnceDep,
    name: Annotated[
        str, Query(max_length=100, description="For competition.yaml: the name; made of its title else.")
    ] = "",
    version: Annotated[
        str, Query(max_length=64, description="For competition.yaml: the version; the next one else.")
    ] = "",
) -> Response:
    """Starts a publication. Follow it at its `Location` until its state is `ready` or `rejected`; a rejected one
    lists all problems. Content that was published before is answered with that version."""
    expect_type(request, *_ZIP)

    async def execute(request_id: str) -> Response:
        length = request.headers.get("content-length", "")
        header = environment_pb2.UploadHeader(
            request_id=request_id,
            size_bytes=int(length) if length.isdigit() else 0,
            name=name,
            version=version,
        )
        publication = await upload(
            request,
            caller,
            caller.backends.environments.UploadBundle,
            environment_pb2.UploadBundleRequest(header=header),
            lambda chunk: environment_pb2.UploadBundleRequest(chunk=chunk),
        )
        return json_response(
            schemas.publication_json(publication),
            status=HTTPStatus.ACCEPTED,
            headers={"Location": f"/api/v1/publications/{quote(publication.name)}"},
        )

    return await once(execute)


@router.get(
    "/publications/{publication}",
    summary="Get a publication",
    responses=openapi.answer(documents.Publication),
)
async def get_publication(
    caller: CallerDep, publication: Annotated[str, Path(description="The id that the upload was given.")]
) -> Response:
    """Where an upload stands, and all that is wrong with it. The words are for keys with the scope `publish` or
    `answers`, since what is wrong is said by example."""
    request = environment_pb2.GetPublicationRequest(name=publication)
    found = await caller.call(caller.backends.environments.GetPublication, request)
    return json_response(schemas.publication_json(found))


@router.get(
    "/environments/{name:slashed}/versions",
    summary="List versions",
    responses=openapi.answer(documents.VersionPage),
)
async def list_versions(
    caller: CallerDep, name: Name, page_size: PageSize = 50, page_token: PageToken = ""
) -> Response:
    """Versions of an environment, newest first; yanked ones are left out."""
    request = environment_pb2.ListEnvironmentVersionsRequest(
        environment=name, page_size=page_size, page_token=page_token
    )
    page = await caller.call(caller.backends.environments.ListEnvironmentVersions, request)
    return page_response(page.environment_versions, schemas.version_json, page.next_page_token)


@router.get(
    "/environments/{name:slashed}/versions/{version}",
    summary="Get a version",
    responses=openapi.answer(documents.Version),
)
async def get_version(
    caller: CallerDep,
    name: Name,
    version: VersionNumber,
) -> Response:
    """One version, with its digests and what its reference solutions scored; with the scope `answers` also its
    scoring rules and manifest, which can hold answers."""
    request = environment_pb2.GetEnvironmentVersionRequest(name=reference(name, version))
    found = await caller.call(caller.backends.environments.GetEnvironmentVersion, request)
    return json_response(schemas.version_json(found))


@router.get(
    "/environments/{name:slashed}",
    summary="Get an environment",
    responses=openapi.answer(documents.Environment),
)
async def get_environment(caller: CallerDep, name: Name) -> Response:
    """One environment."""
    request = environment_pb2.GetEnvironmentRequest(name=name)
    found = await caller.call(caller.backends.environments.GetEnvironment, request)
    return json_response(schemas.environment_json(found))
