"""One suite over every sink: what the Exporter protocol promises, whatever the store."""
