"""Windows of pixels to tokens, features and logits."""

from atlas_wsi.models.atlas import Atlas, AtlasConfig
from atlas_wsi.models.card import ModelCard, ModelClass
from atlas_wsi.models.mambavision import MambaVision
from atlas_wsi.models.model import Model, Prediction
from atlas_wsi.models.registry import load_model, shipped_models
from atlas_wsi.models.tile_classifier import TileClassifier, load_tile_classifier

__all__ = [
    "Atlas",
    "AtlasConfig",
    "MambaVision",
    "Model",
    "ModelCard",
    "ModelClass",
    "Prediction",
    "TileClassifier",
    "load_model",
    "load_tile_classifier",
    "shipped_models",
]
