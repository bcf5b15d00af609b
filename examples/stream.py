"""A generator function: each item reaches the caller as soon as it is yielded.

Run it (``python examples/stream.py``) or deploy it (``brinery deploy examples/stream.py``).
"""

from collections.abc import Iterator

from brinery import endpoint


@endpoint
def square_root(number: float, digits: int = 12) -> Iterator[dict]:
    """Close in on a square root by Newton's method, telling every step."""
    guess, step = max(number, 1.0), 0
    while True:
        step, better = step + 1, (guess + number / guess) / 2
        yield {"step": step, "guess": round(better, digits)}
        if abs(better - guess) < 10**-digits or step == 100:
            return
        guess = better


if __name__ == "__main__":
    square_root.deploy()
    for item in square_root.stream(number=2.0):
        print(item)
