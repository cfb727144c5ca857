"""What a setting must be, in one sentence with the value, the limit and the remedy."""


def need(condition: bool, name: str, value: object, limit: str, remedy: str = "") -> None:
    """Raise ``ValueError`` unless ``condition``."""
    if not condition:
        raise ValueError(f"{name} is {value}; it must be {limit}{'; ' if remedy else ''}{remedy}")
