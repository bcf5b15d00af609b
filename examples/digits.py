"""A class that loads once per worker: a model that reads the digits of scikit-learn.

Run it (``python examples/digits.py``) or deploy it (``brinery deploy examples/digits.py``).
"""

from brinery import endpoint

REQUIREMENTS = ["scikit-learn"]


def split_digits():
    """Cut the 1,797 digits into rows to learn from and rows held back; the same cut every time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    return train_test_split(*load_digits(return_X_y=True), test_size=0.25, random_state=7)


@endpoint(requirements=REQUIREMENTS)
class Digits:
    """Say which digit 64 grey values (8 rows of 8, 0 to 16) show."""

    def load(self):
        from sklearn.svm import SVC

        train_pixels, _, train_digits, _ = split_digits()
        self.model = SVC(gamma=0.001).fit(train_pixels, train_digits)

    def predict(self, pixels: list[float]) -> int:
        return int(self.model.predict([pixels])[0])


@endpoint(requirements=REQUIREMENTS)
def held_back(count: int = 200) -> list[dict]:
    """Hand out rows that `Digits` has never seen, so that whoever asks needs no scikit-learn."""
    _, test_pixels, _, test_digits = split_digits()
    rows = zip(test_pixels[:count], test_digits[:count], strict=True)
    return [{"pixels": pixels.tolist(), "digit": int(digit)} for pixels, digit in rows]


if __name__ == "__main__":
    Digits.deploy()
    held_back.deploy()
    rows = held_back.remote(count=200)

    print("one now:    ", Digits.remote(pixels=rows[0]["pixels"]), "expected", rows[0]["digit"])

    futures = [Digits.submit(pixels=row["pixels"]) for row in rows]
    answers = [future.get(timeout=60) for future in futures]
    right = sum(answer == row["digit"] for answer, row in zip(answers, rows, strict=True))
    print(f"200 futures: {right} of {len(rows)} right")
