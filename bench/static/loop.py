"""The main loop of a kernel, read off its SASS: of a product that is one step along the inner axis."""

import re

TENSOR_CORES = r"\b(HGMMA|UTCHMMA|UTCQMMA|HMMA|IMMA)\b"
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);")
_BRANCH = re.compile(r"\bBRA(?:\.\S+)?\s+(?:!?\w+,\s*)*0x([0-9a-f]+)")
_PRODUCTS = (re.compile(TENSOR_CORES), re.compile(r"\bFFMA2?\b"))  # on tensor cores, or float32's off them


def step(sass: str) -> int | None:
    """The instructions of one pass of the main loop; None if no loop multiplies.

    A loop is what lies between a branch and its target further up. The main one is an innermost one of those with
    products, and of these the one with the most.
    """
    listed = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(sass)]
    jumps = [(at, found) for at, text in listed if (found := _BRANCH.search(text))]
    spans = [(int(found[1], 16), at) for at, found in jumps if int(found[1], 16) < at]
    for product in _PRODUCTS:
        loops = []
        for first, last in spans:
            body = [text for at, text in listed if first <= at <= last]
            products = sum(bool(product.search(text)) for text in body)
            if products:
                loops.append((first, last, products, len(body)))
        inner = [a for a in loops if not any(b[:2] != a[:2] and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
        if inner:
            return max(inner, key=lambda loop: loop[2])[3]
    return None
