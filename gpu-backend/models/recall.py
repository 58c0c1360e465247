"""Recall: something is planted in a long text and asked for later.

One conversation may plant several values under different names, so that a long text pays for more than one answer.
An answer repeats the very tokens of the planted word: where the word followed a space its first token carries that
space, otherwise the space is a token of its own. Copying is then one step of induction whatever the word is.
"""

import re

from filler import pieces
from tasks import Turn, chat, short
from words import code_word, held_out

# (name in the answer, other ways to write it)
NAMES = (
    ("code word", ("code word", "code word", "code word", "secret code word", "codeword", "secret code", "special code word")),
    ("secret word", ("secret word", "secret word", "hidden word")),
    ("password", ("password", "password", "secret password")),
    ("magic word", ("magic word",)),
    ("passphrase", ("passphrase", "pass phrase")),
    ("secret number", ("secret number", "magic number")),
    ("access code", ("access code",)),
    ("key word", ("key word", "keyword")),
    ("project name", ("project name",)),
)

PLANT = """The {k} is {v}.|The {k} is {v}.|The {k} is {v}.|Remember this: the {k} is {v}.|The {k} is: {v}.|{K}: {v}|{K}: {v}.|The {k} is {v}|Important: the {k} is {v}.
Please remember that the {k} is {v}.|Note that the {k} is {v}.|The {k} for today is {v}.|My {k} is {v}.|Your {k} is {v}.|Do not forget the {k}: {v}.
{K} = {v}|By the way, the {k} is {v}.|Here is the {k}: {v}.|The {k} you need is {v}.|Attention! The {k} is {v}!|(The {k} is {v}.)|[{K}: {v}]|Remember the {k} {v}.
The {k} is "{v}".|The {k} is "{v}".|The {k} is '{v}'.|The {k} is **{v}**.|{K}: "{v}"|The {k} was {v}.|Remember: the {k} is {v}.|Remember the {k}: {v}.|Keep in mind that the {k} is {v}.
I tell you a secret: the {k} is {v}.|{v} is the {k}.|It is important to know that the {k} is {v}.|The {k} is {v}. Remember it.|the {k} is {v}|Memorize this {k}: {v}.
The {k} that you must remember is {v}.|Listen carefully: the {k} is {v}.|We chose {v} as the {k}.""".replace("\n", "|").split("|")
ASK = """What is the {k}?|What is the {k}?|What was the {k}?|Tell me the {k}.|Repeat the {k}, please.|Which {k} was in the text?|Which {k} was mentioned?|What's the {k}?|Say the {k}.
Say the {k} in one sentence.|Please tell me the {k}.|What {k} did I tell you?|Can you tell me the {k}?|Do you remember the {k}?|Find the {k} in the text above.|Repeat the {k}.
What is the {k} mentioned above?|what is the {k}|Now, what is the {k}?|I forgot the {k}. What was it?|What is the {k} hidden in the text?|Reply with the {k} only.|What is the {k} in the text?
What {k} was mentioned in the text?|Give me the {k}.|Answer with the {k}.|And the {k}?|{K}?|Write the {k}.|What was the {k} again?|Based on the text above, what is the {k}?|State the {k}.
What {k} is hidden in the text?|Please repeat the {k}.|Which {k} was in the text above?|What is the {k}? Answer with the word only.|Remind me of the {k}.""".replace("\n", "|").split("|")
ASK_FIRST = """What is the {k} in the following text?|Find the {k} in this text:|Read the text and tell me the {k}.|What is the {k}?|Below is a text. Tell me the {k} in it.
I will give you a text. Tell me the {k}.|Which {k} is in this text?|Tell me the {k} that is hidden in this text:""".replace("\n", "|").split("|")
BEFORE = ("", "", "", "", "", "Read this text:\n\n", "Here is a text:\n", "Text: ", "Read the following text carefully.\n\n", "Context:\n")
SYSTEMS = ("You are a helpful assistant.", "You are a helpful assistant.", "You answer briefly.", "You are Qwen.", "Be concise.", "You are an assistant at the edge.")
OUTRO = ("\n\n", "\n\n", "\n", " ", "\n\nQuestion: ", "\n---\n")


def fmt(rng, template, k, v=""):
    r = rng.random()
    big = k.upper() if r < 0.2 else k[0].upper() + k[1:]
    text = template.format(k=k, K=big, v=v)
    return text[0].upper() + text[1:] if text.startswith("the ") and rng.random() < 0.5 else text


def plant(rng, test):
    """A named value: (answer name, spelling, sentence, answer pieces)."""
    name, spellings = rng.choices(NAMES, (60,) + (8,) * (len(NAMES) - 1))[0]
    k = rng.choice(spellings)
    v = code_word(rng, test) if "number" not in k else str(rng.randint(10, 99999))
    sentence = fmt(rng, rng.choice(PLANT), k, v)
    if name != "code word" and "{v} is the" in sentence:
        sentence = f"The {k} is {v}."
    before = sentence[: sentence.index(v)]
    copied = [" " + v] if before.endswith(" ") else [" ", v]
    return name, spellings, sentence, [f"The {name} is", *copied, "."]


def plants(rng, test, count):
    found = {}
    while len(found) < count:
        p = plant(rng, test)
        found.setdefault(p[0], p)
    return list(found.values())


def hide(rng, sentences, tokens):
    """Filler of about `tokens` tokens with the sentences at random places."""
    draw, sep = pieces(rng)
    parts, size, i = [], 0, 0
    while size < tokens * 3.0:
        parts.append(draw(i))
        size += len(parts[-1]) + 1
        i += 1
    for s in sentences:
        at = rng.random()
        at = 0 if at < 0.08 else len(parts) if at > 0.94 else rng.randint(0, len(parts))
        if parts and at and rng.random() < 0.3:  # in the middle of a long paragraph, at a sentence's end
            cut = [m.end() for m in re.finditer(r"[.!?] ", parts[at - 1])]
            if cut:
                c = rng.choice(cut)
                parts[at - 1] = f"{parts[at - 1][:c]}{s} {parts[at - 1][c:]}"
                continue
        parts.insert(at, s)
    return sep.join(parts)


def spelling(rng, name, spellings):
    return name if rng.random() < 0.6 else rng.choice(spellings)


def question(rng, p):
    name, spellings, _, answer = p
    return Turn("recall", fmt(rng, rng.choice(ASK), spelling(rng, name, spellings)), answer)


def unknown(rng, planted):
    name, spellings = rng.choice([n for n in NAMES if n[0] not in {p[0] for p in planted}])
    return Turn("recall unknown", fmt(rng, rng.choice(ASK), spelling(rng, name, spellings)), [f"I do not know the {name}."])


def follow_up(rng, planted, test):
    r = rng.random()
    if r < 0.68 and planted:
        return question(rng, rng.choice(planted))
    return unknown(rng, planted) if r < 0.74 else short(rng, test)


def recall_conversation(rng, tokens, test=False, turns=None):
    """(system message or None, turns): a text of about `tokens` tokens, then one or more questions."""
    planted = plants(rng, test, 1 if test else rng.choice((1, 1, 2, 3) if tokens < 900 else (1, 2, 3, 4)))
    if not test and rng.random() < 0.03:
        planted = []
    text = hide(rng, [p[2] for p in planted], tokens)
    system = None if rng.random() < 0.75 else rng.choice(SYSTEMS)
    asked = []
    ask = lambda: question(rng, planted[0]) if test else follow_up(rng, planted, test)
    r = rng.random()
    if r < 0.12:  # in the system message
        system = rng.choice((f"{SYSTEMS[0]} {text}", text, f"{text}\n{rng.choice(SYSTEMS)}"))
        asked.append(ask())
    elif r < 0.26:  # told first, asked in a following turn
        told = rng.choice(BEFORE) + text
        asked.append(Turn("told", told, ["I have read it."]))
        if rng.random() < 0.3:
            asked.append(rng.choice((short, chat))(rng, test))
        asked.append(ask())
    elif r < 0.38 and planted:  # the question comes before the text
        first = question(rng, planted[0])
        k = spelling(rng, planted[0][0], planted[0][1])
        first.user = fmt(rng, rng.choice(ASK_FIRST), k) + rng.choice(("\n\n", "\n\n", "\n", " ")) + text
        if rng.random() < 0.3:
            first.user += rng.choice(("\n\n", "\n")) + fmt(rng, rng.choice(ASK), k)
        asked.append(first)
    else:
        first = ask()
        first.user = rng.choice(BEFORE) + text + rng.choice(OUTRO) + first.user
        asked.append(first)
    for _ in range(0 if test else turns if turns is not None else rng.choice((0, 1, 2, 3, 4))):
        asked.append(follow_up(rng, planted, test))
    return system, asked
