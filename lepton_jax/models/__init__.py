"""Models: Flax modules and others behind init and apply over plain nested dicts of arrays."""

from lepton_jax.models import convnext as convnext
from lepton_jax.models import efficientnet as efficientnet
from lepton_jax.models import resnet as resnet
from lepton_jax.models import stacked as stacked
from lepton_jax.models import vit as vit
from lepton_jax.models import wide_resnet as wide_resnet
from lepton_jax.models.adapters import as_model as as_model
from lepton_jax.models.adapters import functions as functions
from lepton_jax.models.adapters import linen as linen
from lepton_jax.models.adapters import nnx as nnx
from lepton_jax.models.catalog import build as build
from lepton_jax.models.catalog import by_name as by_name
from lepton_jax.models.catalog import table as table
from lepton_jax.models.cnn import cnn as cnn
from lepton_jax.models.inputs import normalized as normalized
from lepton_jax.models.inputs import unit as unit
from lepton_jax.models.layers import Dropout as Dropout
from lepton_jax.models.layers import StochasticDepth as StochasticDepth
from lepton_jax.models.mlp import mlp as mlp
