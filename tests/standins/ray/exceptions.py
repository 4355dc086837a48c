class RayError(Exception):
    """What Ray raises for an actor that is gone."""
