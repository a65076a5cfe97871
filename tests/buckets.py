"""Google Cloud Storage on this machine: an emulator, and what it lacks of generations.

Every content that an object has had is a generation with a number. Readers are told it, and a
writer may name the one that it wants to replace, 0 for none: locks rest on that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from unittest import mock

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

from tests.distributed.several import free_port

BUCKET = "bucket"
Handler = Callable[[Any, Any, Any], None]


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """Gives the address of an empty bucket, for this process and those that it starts."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # Without questions over gRPC, which the emulator does not answer.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    handlers = {
        "download": _told(objects.download),
        "_media_upload": _conditional(objects._media_upload),
        "_multipart_upload": _conditional(objects._multipart_upload),
    }
    with mock.patch.dict(os.environ, environment), mock.patch.multiple(objects, **handlers):
        server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
        server.start()
        try:
            yield f"gs://{BUCKET}"
        finally:
            server.stop()


def _generation(storage: Any, name: str) -> str:
    try:
        return storage.get_file_obj(BUCKET, name)["generation"]
    except NotFound:
        return "0"


def _told(download: Handler) -> Handler:
    def handler(request: Any, response: Any, storage: Any) -> None:
        response["x-goog-generation"] = _generation(storage, request.params["object_id"])
        download(request, response, storage)

    return handler


def _conditional(upload: Handler) -> Handler:
    def handler(request: Any, response: Any, storage: Any) -> None:
        named = request.query.get("name")
        name = named[0] if named else request.data["meta"]["name"]
        wanted = request.query.get("ifGenerationMatch")
        if wanted is not None and wanted != [_generation(storage, name)]:
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            upload(request, response, storage)

    return handler
