"""Finished variants as models: each is registered under its name, and a version is made of each bundle once."""

from __future__ import annotations

import logging
import tempfile
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException

from msd.runs import Row
from msd.runs.row import BUNDLE
from msd.store import Manifest

ALIAS = "current"  # MLflow keeps "latest" for itself
LOADER = "msd.bundle.serve"
NEEDS = ("torch", "numpy", "safetensors", "scipy", "pyyaml", "pydantic")
TEXT_NEEDS = ("diffusers", "transformers")


def register(client: MlflowClient, experiment_id: str, run_id: str, name: str, row: Row) -> None:
    """Log and register the bundle of a finished variant, unless that was done; the alias points to it.

    Args:
        run_id: of the variant.
        name: of the registered model.
        row: of the variant; nothing is done before it is finished.
    """
    if row.bundle is None:
        return
    digest = row.tags[BUNDLE]
    assert digest is not None
    known = list(client.search_model_versions(f"name='{name}' and tags.`{BUNDLE}`='{digest}'"))
    if not known:
        model = _logged(client, experiment_id, run_id, name, row, digest)
        _make_name(client, name)
        known = [
            client.create_model_version(
                name, model.artifact_location, run_id, {BUNDLE: digest}, model_id=model.model_id
            )
        ]
    number = str(known[0].version)  # a database gives an int, a server a string
    if str(client.get_registered_model(name).aliases.get(ALIAS)) != number:
        client.set_registered_model_alias(name, ALIAS, number)


def _make_name(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)


def _logged(client: MlflowClient, experiment_id: str, run_id: str, name: str, row: Row, digest: str) -> LoggedModel:
    """The bundle as one of MLflow's models; one that a killed call left is completed."""
    found = client.search_logged_models([experiment_id], f"name='{name}' and tags.`{BUNDLE}`='{digest}'")
    model = found[0] if found else client.create_logged_model(experiment_id, name, run_id, {BUNDLE: digest})
    if model.status == LoggedModelStatus.READY:
        return model
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "model", model, run_id, row)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    output = LoggedModelOutput(model.model_id, step=0)
    outputs = client.get_run(run_id).outputs
    if outputs is None or output not in outputs.model_outputs:  # MLflow refuses what it knows
        client.log_outputs(run_id, [output])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _write(folder: Path, model: LoggedModel, run_id: str, row: Row) -> None:
    """A folder that is a bundle and a model at once. The networks are linked, so that the upload is the only copy."""
    import mlflow.pyfunc  # takes longer to import than all else takes to run, and is needed for new weights only
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    assert row.bundle is not None
    manifest = Manifest.read(row.bundle / "manifest.json")
    needs = NEEDS + TEXT_NEEDS * ("prompts" in manifest.results)
    for chatty in ("mlflow.pyfunc", "mlflow.utils.environment"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER,
        mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.int64), (-1,))]),
            Schema([TensorSpec(np.dtype(np.uint8), (-1, *row.image_shape))]),
            ParamSchema([ParamSpec("seed", "long", 0)]),
        ),
        input_example=np.arange(4),
        pip_requirements=[f"{package}=={version(package)}" for package in needs],
    )
    for path in [manifest.path, *(manifest.file(name) for name in manifest.body["files"])]:
        linked = folder / path.relative_to(row.bundle)
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to(path.resolve())
