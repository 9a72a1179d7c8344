"""Measure how good and how different the stories of a model are.

    python benchmarks/story_quality.py                              # the built-in model
    python benchmarks/story_quality.py --way single                 # without other candidates
    python benchmarks/story_quality.py stories15M.bin --way run     # as llama2.c writes
    python benchmarks/story_quality.py --texts held-out.txt         # stories that exist
    python benchmarks/story_quality.py --way about                  # 50 subjects

With --corpus FILE (the stories that the model was trained on) it also counts words that the corpus
does not have, and looks for the longest run of words that a story shares with the corpus. With
--judge FILE, a larger language model measures the bits per byte of the stories. A judge rewards
what is predictable: read its number beside the numbers for diversity. Every number is a share of
the stories unless it says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from llama2py import StoryTeller, load
from llama2py.formats.corpus import read_stories

SUBJECTS = [
    "a dragon who is afraid of fire",
    "three kittens",
    "Lily and her cat",
    "a sad frog",
    "the moon",
    "a brave knight",
    "a robot who wants a friend",
    "two brothers and a boat",
    "a princess and a bear",
    "a lost puppy",
    "an old wizard",
    "a bird that cannot fly",
    "a boy who finds a magic stone",
    "my dog",
    "learning to swim",
    "friendship",
    "the first day of school",
    "a mouse and an elephant",
    "a girl who loves the rain",
    "a pirate ship",
    "snow",
    "how the cat got its spots",
    "a hungry caterpillar",
    "Tom and the big tree",
    "a birthday cake",
    "Tell me about a sad frog",
    "tell me a story about two owls, please",
    "a story about a train",
    "Søren",
    "Мария и её кот",
    "أحمد",
    "小明",
    "a king with no clothes",
    "a fish who wants to see the sky",
    "ducks in a pond",
    "a snowman that melts",
    "a monkey who steals bananas",
    "sharing toys",
    "a butterfly with a broken wing",
    "a farmer and his horse",
    "the biggest pumpkin",
    "a turtle who wins a race",
    "a girl named Zoë",
    "a cloud",
    "a fox and a rabbit become friends",
    "a little star",
    "a boy whose balloon flies away",
    "an umbrella",
    "a monster under the bed",
    "a kind witch",
]
WORDS = [
    "dragon umbrella",
    "violin dog",
    "apple boat",
    "moon key",
    "robot cake",
    "frog hat",
    "snow train",
    "bear honey",
    "castle mouse",
    "flower rain",
    "star jump",
    "river stone",
    "happy whisper",
    "blue balloon",
    "farm rope",
    "cookie secret",
    "shark island",
    "garden ladder",
    "brave lantern",
    "pillow thunder",
]
NOT_SUBJECTS = "a an the and who that is of her his its my with in on to by tell me about story two"
EQUAL_WORDS = 5000  # distinct-n depends on the length of a text
GRAM = 4
INDEX_GRAM = 8  # words: shorter runs shared with the corpus are not looked for
NEAR = 0.5  # a story that shares this much with another one is nearly the same


@dataclass(frozen=True, slots=True)
class Text:
    """A story, its subject and required words if any, and whether the model ended it."""

    text: str
    ended: bool = True
    subject: str = ""
    words: tuple[str, ...] = ()
    start: str = ""


# ---- where stories come from ----


def told(model_path: str | None, way: str, n: int, seed: int) -> Iterator[Text]:
    """Yield stories of a model."""
    with load(model_path) as model:
        if way == "run":
            for each in model.generate_many([""] * n, 256, seed=range(seed, seed + n)):
                yield Text(each.text.strip(), each.finish_reason == "stop")
            return
        tell = StoryTeller(model, candidates=1) if way == "single" else StoryTeller(model)
        if way in ("about", "words"):
            wishes = SUBJECTS if way == "about" else WORDS
            for number, wish in enumerate(islice(chain.from_iterable([wishes] * n), n)):
                words = tuple(wish.split()) if way == "words" else ()
                subject = wish if way == "about" else ""
                story = tell(subject, words=words, seed=seed + number)
                yield Text(story.text, story.ended, subject, words, _first_sentence(story.text))
        else:
            for story in tell.many(n, seed=seed):
                yield Text(story.text, story.ended)


# ---- what is measured ----


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case, without punctuation."""
    return re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text.casefold())


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, roughly: an abbreviation ends one, too."""
    return [part.strip() for part in re.split(r"(?<=[.!?])[\"'”’]*\s+", text) if part.strip()]


def _first_sentence(text: str) -> str:
    return sentences_of(text)[0] if text.strip() else ""


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of ``n`` words."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def loops(text: str) -> bool:
    """Return whether at least 12 words in a row are three rounds of the same words."""
    words = words_of(text)
    for period in range(1, len(words) // 3 + 1):
        run = 0
        for i in range(period, len(words)):
            run = run + 1 if words[i] == words[i - period] else 0
            if run >= 2 * period and run + period >= 12:
                return True
    return False


def has_sentence_twice(text: str) -> bool:
    """Return whether a sentence of at least three words comes twice."""
    plain = [" ".join(words_of(sentence)) for sentence in sentences_of(text)]
    plain = [sentence for sentence in plain if sentence.count(" ") >= 2]
    return len(set(plain)) < len(plain)


def is_whole(text: str) -> bool:
    """Return whether a text ends with the end of a sentence."""
    return text.rstrip().rstrip("\"'”’)")[-1:] in {".", "!", "?", "…"}


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of different n-grams in the first `EQUAL_WORDS` words of all texts."""
    words = list(islice(chain.from_iterable(map(words_of, texts)), EQUAL_WORDS))
    found = grams(words, n)
    return len(set(found)) / len(found) if found else math.nan


def nearest_overlaps(texts: Sequence[str]) -> list[float]:
    """Return, for each text, the largest share of its 4-grams that another text has."""
    sets = [set(grams(words_of(text), GRAM)) for text in texts]
    where: dict[tuple[str, ...], list[int]] = {}
    for number, found in enumerate(sets):
        for gram in found:
            where.setdefault(gram, []).append(number)
    overlaps = []
    for number, found in enumerate(sets):
        shared = Counter(other for gram in found for other in where[gram] if other != number)
        most = max(shared.values(), default=0)
        overlaps.append(most / len(found) if found else 0.0)
    return overlaps


def hero(text: str) -> str:
    """Return the first name in a story: after "named", or a word with a capital in a sentence."""
    named = re.search(r"\bnamed ([A-Z]\w+)", text)
    inside = re.search(r"(?<=[a-z,] )([A-Z]\w+)", text)
    begins = re.match(
        r"([A-Z]\w+)(?:'s)?(?: and [A-Z]\w+)? (?:was|were|had|went|loved|liked|saw)", text
    )
    found = named or inside or begins
    return found[1] if found else "-"


class Corpus:
    """The words of a corpus, to look for runs that a story shares with it."""

    def __init__(self, paths: Iterable[Path]) -> None:
        stories = [story for path in paths for story in read_stories(path)]
        numbers: dict[str, int] = {}
        ids: list[int] = []
        for story in stories:
            ids += [numbers.setdefault(word, len(numbers) + 1) for word in words_of(story)]
            ids.append(0)  # no run crosses from one story into the next
        self.vocabulary = numbers
        self._ids = np.array(ids, np.int64)
        hashes = self._hash(self._ids)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    @staticmethod
    def _hash(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a hash of each run of `INDEX_GRAM` words."""
        n = max(0, len(ids) - INDEX_GRAM + 1)
        hashes = np.zeros(n, np.uint64)
        for i in range(INDEX_GRAM):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + n].astype(np.uint64)
        return hashes

    def longest_run(self, text: str) -> int:
        """Return the number of words in the longest run that the corpus has, too.

        It is 0 if the run is shorter than `INDEX_GRAM`.
        """
        ids = np.array([self.vocabulary.get(word, -1) for word in words_of(text)], np.int64)
        hashes = self._hash(ids)
        first = np.searchsorted(self._sorted, hashes, "left")
        last = np.searchsorted(self._sorted, hashes, "right")
        longest = 0
        for at, (low, high) in enumerate(zip(first, last, strict=True)):
            for place in self._order[low:high]:
                n = min(len(ids) - at, len(self._ids) - int(place))
                same = ids[at : at + n] == self._ids[place : place + n]
                run = n if same.all() else int(np.argmin(same))
                longest = max(longest, run if run >= INDEX_GRAM else 0)
        return longest


def returns(text: Text) -> tuple[bool, bool]:
    """Return whether each word of the subject comes back after the opening, and near the end."""
    subject = [word for word in words_of(text.subject) if word not in NOT_SUBJECTS.split()]
    rest = words_of(text.text[len(text.start) :])
    stems = [word.rstrip("s")[:5] for word in subject]
    later = [word[:5].rstrip("s") if len(word) < 6 else word[:5] for word in rest]
    last = later[len(later) * 2 // 3 :]
    main = stems[:1]  # the first noun or adjective
    return all(stem in later for stem in stems), any(stem in last for stem in main or stems)


def bits_per_byte(judge: str, texts: Sequence[str]) -> float:
    """Return the mean bits per byte of texts under a model."""
    nats = n_bytes = 0.0
    with load(judge) as model:
        for text in texts:
            nats -= float(model.score(text).sum())
            n_bytes += len(text.encode())
    return nats / math.log(2) / n_bytes


# ---- the report ----


def report(
    texts: Sequence[Text], corpus: Corpus | None, judge: str | None, n_judged: int
) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each measurement."""
    plain = [text.text for text in texts]
    n = len(plain)

    def share(flags: Iterable[bool]) -> str:
        return f"{sum(flags) / n:.1%}"

    yield "stories", str(n)
    yield "words per story", f"{sum(len(text.split()) for text in plain) / n:.0f}"
    yield "loops", share(map(loops, plain))
    yield "a sentence twice", share(map(has_sentence_twice, plain))
    yield "cut in a sentence", share(not is_whole(text) for text in plain)
    yield "not ended by the model", share(not text.ended for text in texts)
    for size in (1, 2, 4):
        yield f"distinct-{size} of {EQUAL_WORDS} words", f"{distinct(plain, size):.3f}"
    yield "different first sentences", f"{len(set(map(_first_sentence, plain))) / n:.1%}"
    overlaps = nearest_overlaps(plain)
    yield "4-grams shared with the nearest story", f"{sum(overlaps) / n:.1%}"
    yield "near-duplicates", share(overlap >= NEAR for overlap in overlaps)
    heroes = Counter(map(hero, plain)).most_common(4)
    yield (
        "commonest heroes",
        ", ".join(f"{name} {count / n:.0%}" for name, count in heroes if name != "-"),
    )
    if corpus is not None:
        unknown = [
            word for text in plain for word in words_of(text) if word not in corpus.vocabulary
        ]
        total = sum(len(words_of(text)) for text in plain)
        yield "words that the corpus lacks", f"{len(unknown) / total:.2%}"
        runs = [corpus.longest_run(text) for text in plain]
        yield (
            "longest run shared with the corpus",
            f"{max(runs)} words (median {int(np.median(runs))})",
        )
    if any(text.subject for text in texts):
        found = [returns(text) for text in texts]
        yield "every word of the subject comes back", share(all_back for all_back, _ in found)
        yield "the subject is in the last third", share(at_end for _, at_end in found)
    if any(text.words for text in texts):
        yield (
            "has all words",
            share(
                all(re.search(rf"\b{word}", text.text, re.IGNORECASE) for word in text.words)
                for text in texts
            ),
        )
    if judge is not None:
        yield (
            f"the judge's bits per byte ({min(n, n_judged)} stories)",
            f"{bits_per_byte(judge, plain[:n_judged]):.3f}",
        )


def main() -> None:
    """Write or read stories, and print a table of measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="default: the built-in model")
    parser.add_argument(
        "--way", choices=("story", "single", "run", "about", "words"), default="story"
    )
    parser.add_argument("--texts", type=Path, help="measure the stories of this file instead")
    parser.add_argument("-n", "--count", type=int, default=500)
    parser.add_argument("-s", "--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="repeatable")
    parser.add_argument("--judge", help="a language model, such as SmolLM2-135M.gguf")
    parser.add_argument("--judged", type=int, default=60, help="how many stories it reads")
    parser.add_argument("--jsonl", type=Path, help="write the stories to this file")
    args = parser.parse_args()
    started = perf_counter()
    if args.texts:
        texts = [Text(story) for story in islice(read_stories(args.texts), args.count)]
    else:
        texts = list(told(args.model, args.way, args.count, args.seed))
    seconds = perf_counter() - started
    if args.jsonl:
        lines = [
            json.dumps({"text": t.text, "subject": t.subject, "words": t.words}) for t in texts
        ]
        args.jsonl.write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = Corpus(args.corpus) if args.corpus else None
    rows = list(report(texts, corpus, args.judge, args.judged))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"| {name:<{width}} | {value} |")
    if not args.texts:
        print(f"{len(texts) / seconds:.1f} stories a second", file=sys.stderr)


if __name__ == "__main__":
    main()
