"""The two-function form: one function loads a model, the other makes the predict function from it.

Run it (``python examples/pair.py``) or deploy it (``brinery deploy examples/pair.py``).
"""

from collections import Counter

from brinery import Bundle

REVIEWS = {
    "good": "great product works well love it great quality works as promised happy excellent and fast",
    "bad": "broken on arrival bad quality broke soon does not work want money back slow and awful",
}


def load_model():
    """Learn how often each word stands in good and in bad reviews; once per worker."""
    return {label: Counter(words.split()) for label, words in REVIEWS.items()}


def load_predict(model):
    """Return the function that answers requests; it keeps `model` for as long as the worker lives."""
    vocabulary = {word for counts in model.values() for word in counts}

    def predict(review: str) -> dict:
        scores = {}
        for label, counts in model.items():
            scores[label] = 1.0
            for word in review.lower().split():  # naive Bayes, add-one smoothing
                scores[label] *= (counts[word] + 1) / (counts.total() + len(vocabulary))
        label = max(scores, key=scores.get)
        return {"label": label, "confidence": round(scores[label] / sum(scores.values()), 3)}

    return predict


sentiment = Bundle(name="sentiment", load_model=load_model, load_predict=load_predict)


if __name__ == "__main__":
    sentiment.deploy()
    print(sentiment.remote(review="great quality and it works"))
    print(sentiment.remote(review="awful it broke"))
