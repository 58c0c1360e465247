"""Held-out accuracy, exact match of the whole answer.

An answer counts when the model's greedy choice agrees at every one of its tokens, the final <|im_end|> included, given
the tokens before it: that is the same as greedy generation giving exactly this answer, at the price of one forward pass.
Padding rows of the vocabulary take part in the argmax and so may not win either.
"""

import random

import torch

import recall
import tasks

SHORT = {
    "addition (0-99)": lambda r: tasks.arithmetic(r, True, 99, False),
    "addition (0-999)": lambda r: tasks.arithmetic(r, True, 999, False),
    "subtraction (0-99)": lambda r: tasks.arithmetic(r, True, 99, True),
    "subtraction (0-999)": lambda r: tasks.arithmetic(r, True, 999, True),
    "sort 3-7 numbers": lambda r: tasks.sort_numbers(r, True),
    "sort 3-6 words": lambda r: tasks.sort_words(r, True),
    "capitals": lambda r: tasks.capital(r, True),
    "counting": lambda r: tasks.counting(r, True),
    "counting words": lambda r: tasks.count_words(r, True),
    "reverse a word": lambda r: tasks.reversing(r, True),
    "greeting": lambda r: tasks.greeting(r, True),
    "out of scope": lambda r: tasks.out_of_scope(r, True),
}
RECALL = (0, 100, 500, 1500)


def cases(seed, per_task, per_recall):
    """{task: [(system, turns)]}: the last turn is asked."""
    rng = random.Random(seed)
    found = {name: [(None, [draw(rng)]) for _ in range(per_task)] for name, draw in SHORT.items()}
    for tokens in RECALL:
        found[f"recall after {tokens} tokens"] = [
            recall.recall_conversation(rng, tokens, test=True) for _ in range(per_recall if tokens > 100 else per_task)]
    plain = found["recall a plain word after 1500 tokens"] = []
    while len(plain) < per_recall:
        system, turns = recall.recall_conversation(rng, 1500, test=True)
        if turns[-1].answer[-2].strip().isalpha():
            plain.append((system, turns))
    return found


def choices(model, ids, start):
    """The greedy choice at every place from `start` on."""
    hidden = model(torch.tensor([ids]))[0, start:]
    return model.logits(hidden).argmax(-1).tolist()


@torch.no_grad()
def accuracy(model, encoder, seed=99, per_task=100, per_recall=40, failures=None):
    table = {}
    for name, drawn in cases(seed, per_task, per_recall).items():
        right = 0
        for system, turns in drawn:
            prompt, answer = encoder.prompt(system, turns), encoder.answer(turns[-1])
            got = choices(model, prompt + answer[:-1], len(prompt) - 1)
            right += got == answer
            if got != answer and failures is not None:
                failures.setdefault(name, []).append((turns[-1].user[-200:], turns[-1].text, got))
        table[name] = right / len(drawn)
    return table
