"""Word lists that the demo's questions are made of. Knows nothing of questions or models."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THINGS = _words(
    """
    cat dog cow pig hen fox bear wolf lion goat sheep horse mouse frog fish crab bird duck owl bee
    apple pear plum bread cheese milk rice soup cake egg salt sugar honey tea
    sun moon star sky rain snow wind cloud storm sea lake river hill rock sand tree leaf root seed
    rose lily house door wall roof room bed chair table lamp clock book pen paper box bag key coin
    cup bowl plate spoon knife boat ship car train bus road bridge tower garden farm shop school
    hat coat shoe sock shirt ring drum bell flag rope nail saw axe net wheel ball kite doll mask
    king queen baker sailor doctor teacher friend child
    """
)

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "young"),
    ("high", "low"),
    ("hard", "soft"),
    ("wet", "dry"),
    ("full", "empty"),
    ("rich", "poor"),
    ("light", "dark"),
    ("long", "short"),
    ("open", "closed"),
    ("early", "late"),
    ("happy", "sad"),
    ("loud", "quiet"),
    ("clean", "dirty"),
)

COLOUR_OF: tuple[tuple[str, str], ...] = (
    ("grass", "green"),
    ("the sky", "blue"),
    ("snow", "white"),
    ("coal", "black"),
    ("blood", "red"),
    ("a lemon", "yellow"),
    ("a carrot", "orange"),
    ("chocolate", "brown"),
    ("a pig", "pink"),
    ("an elephant", "grey"),
    ("milk", "white"),
    ("a tomato", "red"),
)
