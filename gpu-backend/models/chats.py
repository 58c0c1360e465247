"""Conversations as token rows in Qwen2's chat template, with a weight for every token that is learned."""

import random

import numpy as np

from recall import SYSTEMS, recall_conversation
from tasks import Turn, counting, short

DEFAULT_SYSTEM = "You are a helpful assistant."

# (rows, row length, filler tokens from, to): mostly short rows; a fixed share reaches beyond 1,500 tokens of filler.
BUCKETS = {"short": (32, 160, 0, 0), "medium": (4, 480, 0, 300), "long": (1, 2048, 900, 1720)}
TASK_WEIGHT = {"told": 0.3, "out of scope": 0.3, "chat": 0.3, "sort numbers": 2.0, "sort words": 2.0, "counting": 2.0, "reversing": 1.5}
STOP = 2.0  # weight of the end of a count


class Encoder:
    def __init__(self, tokenizer):
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.im_start, self.im_end = (tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
        self.newline = self.encode("\n")
        self.opening = [self.im_start, *self.encode("assistant\n")]

    def message(self, role, content):
        return [self.im_start, *self.encode(f"{role}\n{content}"), self.im_end, *self.newline]

    def answer(self, turn: Turn):
        return [i for piece in turn.answer for i in self.encode(piece)] + [self.im_end]

    def prompt(self, system, turns):
        """Everything up to the place where the last turn's answer begins."""
        ids = self.message("system", DEFAULT_SYSTEM if system is None else system)
        for turn in turns[:-1]:
            ids += self.message("user", turn.user) + self.opening + self.answer(turn) + self.newline
        return ids + self.message("user", turns[-1].user) + self.opening

    def row(self, system, turns, length):
        """(ids, weights) of as many turns as fit; None when not even the first does."""
        ids = self.message("system", DEFAULT_SYSTEM if system is None else system)
        weights = [0.0] * len(ids)
        for turn in turns:
            ask = self.message("user", turn.user) + self.opening
            answer = self.answer(turn)
            if len(ids) + len(ask) + len(answer) + 1 > length:
                break
            # Long answers (counting) must not drown the short ones; stock phrases need little.
            weight = min(1.0, (16 / len(answer)) ** 0.5) * TASK_WEIGHT.get(turn.task, 1.0)
            learned = [weight] * len(answer)
            if turn.task == "counting":  # what is hard is to stop in time
                learned[-1] = weight * STOP
            ids += ask + answer + self.newline
            weights += [0.0] * len(ask) + learned + [0.0]
        return (ids, weights) if any(weights) else None


def endless(rng, turns):
    yield from turns
    while True:
        yield short(rng)


def batch(rng, encoder, bucket):
    """ids int64[rows, length], weights float32[rows, length]; the padding is weightless."""
    rows, length, low, high = BUCKETS[bucket]
    ids = np.zeros((rows, length), np.int64)
    weights = np.zeros((rows, length), np.float32)
    done = 0
    while done < rows:
        if bucket == "short" and rng.random() < 0.8:
            system = None if rng.random() < 0.75 else rng.choice(SYSTEMS)
            turns = []
        elif bucket == "medium" and rng.random() < 0.2:  # room for long counts
            system, turns = None, [counting(rng, longest=60), counting(rng, longest=60)]
        else:
            system, turns = recall_conversation(rng, rng.randint(low, high) if high else rng.randint(0, 50))
            if bucket == "short" and rng.random() < 0.5:
                turns = [short(rng)] + turns if system is None else turns
        row = encoder.row(system, endless(rng, turns), length)
        if row is None:
            continue
        ids[done, : len(row[0])], weights[done, : len(row[1])] = row
        done += 1
    return ids, weights


def produce(queue, tokenizer_file, seed, buckets):
    """Runs in a process of its own and keeps the training supplied."""
    from tokenizers import Tokenizer

    encoder, rng = Encoder(Tokenizer.from_file(str(tokenizer_file))), random.Random(seed)
    while True:
        queue.put({bucket: batch(rng, encoder, bucket) for bucket in buckets})
