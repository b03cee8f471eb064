"""easy-VQA (github.com/vzhou842/easy-VQA): what its questions ask for. No torch."""

SHAPES = ("circle", "rectangle", "triangle")


def asked_for(question: str) -> str:
    """Return what a question asks for: ``color``, ``shape``, or ``yes/no`` about one of them."""
    if question.startswith("what"):
        return "color" if "color" in question else "shape"
    return f"yes/no {'shape' if any(shape in question for shape in SHAPES) else 'color'}"
