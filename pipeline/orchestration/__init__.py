"""The Dagster layer: partitions, assets, jobs, the sensor and checks over the stages. Domain logic lives elsewhere."""
