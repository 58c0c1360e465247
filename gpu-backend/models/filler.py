"""Filler text of many kinds, for hiding a code word in: people will bring their own, so no single kind may dominate."""

import re

from words import ADJECTIVES, NAMES, NOUNS, PROSE, VERBS, WORDS, CAPITALS, invented

LOREM = """lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna
aliqua ut enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat duis aute
irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur excepteur sint occaecat cupidatat
non proident sunt in culpa qui officia deserunt mollit anim id est laborum""".split()

STOCK = """The quick brown fox jumps over the lazy dog.
The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
This is some filler text that means nothing at all.
It was a bright cold day in April, and the clocks were striking thirteen.
All work and no play makes Jack a dull boy.
The weather was mild that day and nothing much happened.
Many people walked along the river and talked about the news.
In the beginning there was only a small village near the sea.
This sentence is here only to make the text longer.
Nothing important is said in this sentence.
She sells sea shells by the sea shore.
A journey of a thousand miles begins with a single step.
The train left the station at noon and arrived in the evening.
We hold these truths to be self-evident, that all men are created equal.
Call me Ishmael. Some years ago I went to sea.
It was the best of times, it was the worst of times.
Water boils at one hundred degrees and freezes at zero.
History is full of kings, queens, wars and treaties.
The committee met on Tuesday to discuss the budget for the coming year.
Plants need light, water and air in order to grow.
Once upon a time there lived an old man with his three sons.
Please read the following text carefully before you answer.
This is filler.
Padding text goes here.""".split("\n")

PROSE_PARAGRAPHS = [" ".join(p.split()) for p in PROSE.split("\n\n") if len(p) > 120 and p.count("    ") < 4 and "+--" not in p]
PROSE_SENTENCES = [s for p in PROSE_PARAGRAPHS for s in re.split(r"(?<=[.!?])\s+", p) if 20 < len(s) < 300]


def templated_sentence(rng):
    a, b, c = rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(NOUNS)
    j, k, v = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES), rng.choice(VERBS)
    n, m = rng.choice(NAMES), rng.choice(NAMES)
    return rng.choice((
        lambda: f"The {j} {a} {v} the {k} {b}.",
        lambda: f"{n} {v} a {j} {a} near the {b}.",
        lambda: f"Every {rng.choice(('morning', 'evening', 'day', 'week', 'summer'))} {n} {v} the {a} and the {b}.",
        lambda: f"{n} and {m} talked about the {j} {a}, but nobody knew where the {b} was.",
        lambda: f"In the {a} there was a {j} {b} and a {k} {c}.",
        lambda: f"The {a} of {n} is {j}.",
        lambda: f"When the {a} is {j}, the {b} {v} the {c}.",
        lambda: f"{n} has {rng.randint(2, 99)} {a}s and {rng.randint(2, 99)} {b}s.",
        lambda: f"Is the {a} {j} or {k}? {m} says it is {k}.",
        lambda: f"The capital of {rng.choice(list(CAPITALS))} has many {a}s.",
        lambda: f"It is said that {n} never {v} the {j} {a}.",
        lambda: f"At {rng.randint(1, 12)}:{rng.randint(10, 59)} the {a} was still {j}.",
    ))()


def sentence(rng):
    r = rng.random()
    if r < 0.45:
        return templated_sentence(rng)
    if r < 0.85:
        return rng.choice(PROSE_SENTENCES)
    return rng.choice(STOCK)


def lorem_sentence(rng):
    start = rng.randrange(len(LOREM))
    return " ".join(LOREM[(start + i) % len(LOREM)] for i in range(rng.randint(5, 16))).capitalize() + "."


def random_words(rng):
    draw = rng.choice((lambda: rng.choice(WORDS), lambda: rng.choice(NOUNS), lambda: invented(rng)))
    end = rng.choice((".", ".", "", ","))
    return " ".join(draw() for _ in range(rng.randint(4, 14))) + end


def numbered(rng, style, i):
    return {
        0: lambda: f"Line {i}: {sentence(rng)}",
        1: lambda: f"{i}. {sentence(rng)}",
        2: lambda: f"Item {i} is a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}.",
        3: lambda: f"Line {i}: nothing to see here.",
        4: lambda: f"Sentence number {i} of the filler text.",
        5: lambda: f"- {rng.choice(NAMES)}: {rng.choice(NOUNS)}, {rng.randint(0, 999)}",
        6: lambda: f"Paragraph {i}. The {rng.choice(NOUNS)} {i} is {rng.choice(ADJECTIVES)}.",
        7: lambda: f"This is filler sentence {i}.",
    }[style]()


def pieces(rng):
    """An endless stream of filler pieces of one kind, and the separator that joins them."""
    kind = rng.choices(("mixed", "prose", "templated", "repeat", "lorem", "words", "numbered"), (20, 15, 20, 17, 7, 8, 13))[0]
    sep = rng.choice((" ", " ", " ", "\n"))
    if kind == "mixed":
        return (lambda i: sentence(rng)), sep
    if kind == "prose":
        return (lambda i: rng.choice(PROSE_PARAGRAPHS)), rng.choice((" ", "\n", "\n\n"))
    if kind == "templated":
        return (lambda i: templated_sentence(rng)), sep
    if kind == "repeat":
        few = [rng.choice((sentence, lambda r: r.choice(STOCK), random_words))(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        return (lambda i: few[i % len(few)]), sep
    if kind == "lorem":
        return (lambda i: lorem_sentence(rng)), sep
    if kind == "words":
        return (lambda i: random_words(rng)), sep
    style, first = rng.randrange(8), rng.choice((0, 1, 1, 1, rng.randint(2, 200)))
    return (lambda i: numbered(rng, style, first + i)), rng.choice(("\n", "\n", " "))
