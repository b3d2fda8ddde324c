"""The Dagster layer: partitions, assets, jobs, the sensor and checks over the stages. Domain logic lives elsewhere."""

import warnings

import dagster as dg

warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
