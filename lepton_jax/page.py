"""The name under which `experiment` still imports `report.page`."""

from lepton_jax.report.page import Page as Page
from lepton_jax.report.page import write as write
