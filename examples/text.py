"""A plain function: what a text is made of, with nothing but the standard library.

Run it (``python examples/text.py``) or deploy it (``brinery deploy examples/text.py``).
"""

import re
from collections import Counter

from brinery import endpoint

WORD = re.compile(r"\w+(?:['-]\w+)*")
SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)")
WORDS_READ_PER_MINUTE = 230


@endpoint
def text_stats(text: str, top: int = 5) -> dict:
    """Count words and sentences, and find the words that carry the text: the long and frequent ones."""
    words = [word.lower() for word in WORD.findall(text)]
    counts = Counter(words)
    weight = {word: count * max(0, len(word) - 3) for word, count in counts.items()}
    keywords = sorted((word for word in weight if weight[word]), key=lambda word: (-weight[word], word))
    return {
        "words": len(words),
        "different_words": len(counts),
        "sentences": max(len(SENTENCE_END.findall(text)), 1 if words else 0),
        "reading_seconds": round(60 * len(words) / WORDS_READ_PER_MINUTE, 1),
        "keywords": keywords[:top],
    }


if __name__ == "__main__":
    text = "A brinery turns pickles into services. Pickles go in; services come out!"
    print("here:  ", text_stats(text))

    text_stats.deploy()
    print("remote:", text_stats.remote(text))
