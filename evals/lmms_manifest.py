"""The entry point `lmms_eval.models`, by which lmms-eval finds its model `namm`; it loads nothing else."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("namm", chat_class_path="namm_transfer.evals.lmms_eval.NammVideo")
