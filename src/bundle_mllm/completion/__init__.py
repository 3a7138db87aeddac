"""Completion as a shop needs it: rules, whole catalogs, many questions. It does not travel with a model."""
