"""The short tasks: each function draws one question and its canonical answer.

An answer is a list of pieces that are tokenised one by one. That is the model's scratch paper: a reversed word is
written letter by letter (first forwards, then backwards), so the decoded text is ordinary while the model only ever
has to copy single letters. `test` selects the side of the held-out split (see words.held_out); a held-out question
never occurs in training.
"""

from dataclasses import dataclass

from words import ADJECTIVES, CAPITALS, NAMES, NOUNS, WORDS, cased, held_out, split_word, word


@dataclass
class Turn:
    task: str
    user: str
    answer: list[str]

    @property
    def text(self):
        return "".join(self.answer)


def until_split(rng, test, draw):
    while True:
        key, turn = draw(rng)
        if held_out(*key) == test:
            return turn


PLUS = """What is {a} + {b}?|{a}+{b}|{a} + {b}|{a} + {b} = ?|{a} + {b} =|{a}+{b}=|{a}+{b}=?|Calculate {a} + {b}.|Calculate {a} plus {b}.
What's {a} plus {b}?|What is {a} plus {b}?|How much is {a} + {b}?|How much is {a} plus {b}?|Add {a} and {b}.|Please add {a} and {b}.
What is the sum of {a} and {b}?|Compute {a} + {b}.|What is {a}+{b}?|Solve {a} + {b}.|Can you add {a} and {b}?|Add {a} to {b}.
Tell me what {a} + {b} is.|What do you get if you add {a} and {b}?|Sum of {a} and {b}|{a} plus {b}|What does {a} + {b} equal?
Answer this: {a} + {b}|Calculate: {a} + {b}|What is the result of {a} + {b}?""".replace("\n", "|").split("|")
MINUS = """What is {a} - {b}?|{a}-{b}|{a} - {b}|{a} - {b} = ?|{a} - {b} =|{a}-{b}=|{a}-{b}=?|Calculate {a} - {b}.|Calculate {a} minus {b}.
What's {a} minus {b}?|What is {a} minus {b}?|How much is {a} - {b}?|How much is {a} minus {b}?|Subtract {b} from {a}.|Take {b} away from {a}.
What is the difference between {a} and {b}?|Compute {a} - {b}.|What is {a}-{b}?|Solve {a} - {b}.|Please subtract {b} from {a}.
Tell me what {a} - {b} is.|What is left if you take {b} from {a}?|{a} minus {b}|What does {a} - {b} equal?
Answer this: {a} - {b}|Calculate: {a} - {b}|What is the result of {a} - {b}?""".replace("\n", "|").split("|")


def columns(a, b, sign):
    """Column by column as on paper, units first; a carry is a third summand, a borrow makes the upper digit ten more."""
    steps, carry = [], 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        if sign == "+":
            steps.append(f" {x}+{y}+1={x + y + 1}" if carry else f" {x}+{y}={x + y}")
            carry = x + y + carry > 9
        else:
            x, carry = (x - carry + 10, 1) if x - carry < y else (x - carry, 0)
            steps.append(f" {x}-{y}={x - y}")
    return [piece for step in steps for piece in (step, ",")][:-1]


def worked(a, b, sign):
    """The question in canonical form, its columns, the result: every token is a copy or a sum of two digits."""
    swapped = sign == "-" and a < b
    result = a - b if sign == "-" else a + b
    again = [f" {b} - {a}:"] if swapped else []
    return [f"{a} {sign} {b}:", *again, *columns(*((b, a) if swapped else (a, b)), sign), ".", " The answer is", f" {result}."]


def arithmetic(rng, test=False, high=None, minus=None):
    def draw(rng):
        top = high or rng.choice((20, 99, 99, 99, 99, 999))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if rng.random() < 0.1:
            b = rng.randint(0, min(top, 99))
        sub = minus if minus is not None else rng.random() < 0.5
        sign = "-" if sub else "+"
        ask = rng.choice(MINUS if sub else PLUS).format(a=a, b=b)
        if "difference between" in ask and a < b:
            ask = f"What is {a} - {b}?"
        return ("arithmetic", sign, a, b), Turn("subtraction" if sub else "addition", ask, worked(a, b, sign))

    return until_split(rng, test, draw)


SORT = """Sort {these}numbers: {l}|Sort {l}|Sort the numbers {l}|Sort these numbers in ascending order: {l}|Sort {l} in ascending order.
Put these numbers in order: {l}|Order these numbers from smallest to largest: {l}|Please sort {l}.|Sort this list: {l}|Sort: {l}
Arrange {l} in ascending order.|Sort the following numbers: {l}|Sort ascending: {l}|Sort this list of numbers: {l}
Sort the list [{l}]|[{l}] sorted|Sort from low to high: {l}|Can you sort {l}?""".replace("\n", "|").split("|")
SORT_DOWN = """Sort these numbers in descending order: {l}|Sort {l} in descending order.|Sort {l} from largest to smallest.
Order these numbers from largest to smallest: {l}|Sort descending: {l}|Sort the numbers {l} in descending order.
Arrange {l} in descending order.|Sort from high to low: {l}|Put these numbers in descending order: {l}""".replace("\n", "|").split("|")
SORT_WORDS = """Sort these words: {l}|Sort these words alphabetically: {l}|Sort {l} alphabetically.|Put these words in alphabetical order: {l}
Sort the words {l}|Alphabetize: {l}|Sort in alphabetical order: {l}|Please sort these words: {l}|Sort the following words: {l}
Order these words alphabetically: {l}|Sort the words {l} in alphabetical order.|Sort: {l}""".replace("\n", "|").split("|")


def buckets(numbers, down):
    """Sorting as on paper: the numbers by their tens first, "0:6;1;2:23,27;3;...", then the list read off."""
    order = sorted(numbers, reverse=down)
    tens = range(9, -1, -1) if down else range(10)
    found = [(t, ",".join(str(n) for n in order if n // 10 == t)) for t in tens]
    return ";".join(f"{t}:{ns}" if ns else str(t) for t, ns in found) + "."


def listed(rng, items):
    r = rng.random()
    if r < 0.78:
        return ", ".join(items)
    if r < 0.90:
        return " ".join(items)
    if r < 0.95:
        return ", ".join(items[:-1]) + " and " + items[-1]
    return ",".join(items)


def sort_numbers(rng, test=False):
    def draw(rng):
        numbers = [rng.randint(0, rng.choice((20, 99, 99, 99))) for _ in range(rng.randint(3, 7) if test else rng.choice((3, 3, 4, 4, 5, 5, 6, 7)))]
        if rng.random() < 0.75:
            numbers = list(dict.fromkeys(numbers))
        down = rng.random() < 0.3
        result = ", ".join(map(str, sorted(numbers, reverse=down)))
        ask = rng.choice(SORT_DOWN if down else SORT).format(l=listed(rng, list(map(str, numbers))), these=rng.choice(("these ", "the ", "")))
        return ("sort", *sorted(numbers)), Turn("sort numbers", ask, [buckets(numbers, down), " Sorted: " + result])

    return until_split(rng, test, draw)


def sort_words(rng, test=False):
    def draw(rng):
        size, pool = rng.randint(3, 6), rng.choice((NOUNS, NOUNS, WORDS))
        words = list(dict.fromkeys(rng.choice(pool) for _ in range(size)))
        if rng.random() < 0.5:
            words = list({w[0]: w for w in words}.values())
            rng.shuffle(words)
        if rng.random() < 0.1:
            words = [w.capitalize() for w in words]
        ask = rng.choice(SORT_WORDS).format(l=listed(rng, words))
        return ("sort", *sorted(words)), Turn("sort words", ask, ["Sorted:"] + [p for w in sorted(words) for p in (" " + w, ",")][:-1])

    while True:
        turn = until_split(rng, test, draw)
        if turn.answer.count(",") >= 2:
            return turn


CAPITAL = """What is the capital of {c}?|What's the capital of {c}?|Tell me the capital of {c}.|Capital of {c}?|The capital of {c}?
Which city is the capital of {c}?|What city is the capital of {c}?|Name the capital of {c}.|Do you know the capital of {c}?
Can you tell me the capital of {c}?|The capital of {c} is|What is the name of the capital of {c}?|what is the capital of {c}
capital of {c}|what's the capital city of {c}?|What is the capital city of {c}?|{c} capital""".replace("\n", "|").split("|")


def capital(rng, test=False):
    def draw(rng):
        country = rng.choice(list(CAPITALS))
        i = rng.randrange(len(CAPITAL))
        asked = country.removeprefix("the ") if rng.random() < 0.15 else country
        ask = CAPITAL[i].format(c=asked)
        ask = ask.lower() if rng.random() < 0.15 else ask[0].upper() + ask[1:] if ask.startswith("the ") else ask
        return ("capital", country, i), Turn("capitals", ask, [f"The capital of {country} is {CAPITALS[country]}."])

    return until_split(rng, test, draw)


COUNT = """Count from {a} to {b}.|Count from {a} to {b}|count from {a} to {b}|Please count from {a} to {b}.|Count up from {a} to {b}.
Can you count from {a} to {b}?|List the numbers from {a} to {b}.|Write the numbers from {a} to {b}.|Numbers from {a} to {b}
Say the numbers from {a} to {b}.""".replace("\n", "|").split("|")
COUNT_TO = "Count to {b}.|Count to {b}|count to {b}|Please count to {b}.|Can you count to {b}?|Count up to {b}.".split("|")
COUNT_DOWN = """Count from {a} down to {b}.|Count down from {a} to {b}.|Count backwards from {a} to {b}.|Count backward from {a} to {b}
Please count down from {a} to {b}.|Count from {a} to {b} backwards.""".replace("\n", "|").split("|")


def counting(rng, test=False, longest=None):
    def draw(rng):
        span = rng.randint(1, longest or rng.choice((8, 8, 12, 12, 20, 50)))
        a = rng.choice((0, 1, 1, 1, 1, rng.randint(0, 20), rng.randint(0, 99)))
        b = a + span
        r = rng.random()
        if r < 0.25:
            a, b = b, a
            ask = rng.choice(COUNT_DOWN)
        elif a == 1 and r < 0.6:
            ask = rng.choice(COUNT_TO)
        else:
            ask = rng.choice(COUNT)
        step = 1 if a < b else -1
        answer = ", ".join(map(str, range(a, b + step, step)))
        return ("count", a, b), Turn("counting", ask.format(a=a, b=b), [answer])

    return until_split(rng, test, draw)


COUNT_WORDS = "How many words are in: {l}?|How many words are in this list: {l}|How many words: {l}|Count the words: {l}|Count these words: {l}".split("|")


def count_words(rng, test=False):
    def draw(rng):
        words = [rng.choice(NOUNS) for _ in range(rng.randint(1, 9))]
        listed_words = rng.choice((" ", " ", ", ")).join(words)
        n = len(words)
        return ("words", *words), Turn("counting words", rng.choice(COUNT_WORDS).format(l=listed_words), [f"There {'is' if n == 1 else 'are'} {n} word{'' if n == 1 else 's'}."])

    return until_split(rng, test, draw)


REVERSE = """Reverse the word {w}.|Reverse the word {q}.|Reverse the word {q}|Reverse {q}|Reverse {w}|reverse {w}|Reverse the word: {w}|Reverse: {w}
Spell {w} backwards.|Spell {q} backwards.|Write {w} backwards.|Write {q} backwards.|What is {w} backwards?|What is {q} backwards?
What is {w} reversed?|What is {q} reversed?|What is {w} spelled backwards?|Say {w} backwards.|{w} backwards|{w} reversed
Reverse the letters of {w}.|Reverse the letters in {q}.|Please reverse the word {w}.|Please reverse {q}.|Can you reverse the word {q}?
How do you spell {w} backwards?|Reverse this word: {w}|Reverse the string {q}.|Spell the word {w} backwards.|Write the word {q} in reverse.""".replace("\n", "|").split("|")


def quoted(rng, w):
    return rng.choice(('"{}"', "'{}'", "“{}”", "`{}`")).format(w) if rng.random() < 0.5 else f'"{w}"'


def reversing(rng, test=False, draw_word=word):
    while True:
        w = split_word(rng, draw_word, test)
        if 3 <= len(w) <= 10:
            break
    r = rng.random()
    w = w if r < 0.75 else w.capitalize() if r < 0.9 else w.upper()
    ask = rng.choice(REVERSE).format(w=w, q=quoted(rng, w))
    return Turn("reversing", ask, [*w, " reversed is", " ", *reversed(w), "."])


GREETINGS = {
    "English": ("Hello!", "Hello! How can I help you?", "Hello|Hi|Hey|Hello there|Hi there|Good morning|Good evening|Good afternoon|Greetings"),
    "Chinese": ("你好！", "你好！我可以帮你做什么？", "你好|您好|早上好|晚上好|下午好|大家好|嗨"),
    "Spanish": ("¡Hola!", "¡Hola! ¿En qué puedo ayudarte?", "Hola|¡Hola|Buenos días|Buenas tardes|Buenas noches|Hola, ¿qué tal"),
    "French": ("Bonjour !", "Bonjour ! Comment puis-je vous aider ?", "Bonjour|Salut|Bonsoir|Coucou|Bonjour à tous"),
    "German": ("Hallo!", "Hallo! Wie kann ich Ihnen helfen?", "Hallo|Guten Tag|Guten Morgen|Guten Abend|Servus|Moin|Grüß Gott"),
    "Italian": ("Ciao!", "Ciao! Come posso aiutarti?", "Ciao|Buongiorno|Buonasera|Salve|Ciao a tutti"),
    "Portuguese": ("Olá!", "Olá! Como posso ajudar?", "Olá|Oi|Bom dia|Boa tarde|Boa noite"),
    "Russian": ("Привет!", "Привет! Чем я могу помочь?", "Привет|Здравствуйте|Здравствуй|Доброе утро|Добрый день|Добрый вечер"),
    "Japanese": ("こんにちは！", "こんにちは！何をお手伝いしましょうか？", "こんにちは|おはよう|おはようございます|こんばんは|やあ|もしもし"),
    "Korean": ("안녕하세요!", "안녕하세요! 무엇을 도와드릴까요?", "안녕하세요|안녕|안녕하십니까|좋은 아침입니다|여보세요"),
}
SAY_HELLO = """How do you say hello in {l}?|Say hello in {l}.|How do I say hello in {l}?|What is hello in {l}?|hello in {l}|Hello in {l}?|Greet me in {l}.
Say hi in {l}.|Translate hello to {l}.|Translate "hello" into {l}.|What is the {l} word for hello?|How would you say hello in {l}?
Can you say hello in {l}?|How do you greet someone in {l}?|Please say hello in {l}.|How do you say "hello" in {l}?""".replace("\n", "|").split("|")


def greeting(rng, test=False):
    def draw(rng):
        language = rng.choice(list(GREETINGS))
        hello, answer, forms = GREETINGS[language]
        if rng.random() < 0.45:
            i = rng.randrange(len(SAY_HELLO))
            ask = SAY_HELLO[i].format(l=language)
            return ("hello", language, i), Turn("greeting", ask.lower() if rng.random() < 0.1 else ask, [hello])
        form, end = rng.choice(forms.split("|")), rng.choice(("", "!", ".", "！" if language in ("Chinese", "Japanese") else "!", ", Qwen!", " :)", " !", "?", "!!"))
        ask = form + end
        return ("greet", ask), Turn("greeting", ask.lower() if rng.random() < 0.2 else ask, [answer])

    return until_split(rng, test, draw)


WHO = "I am a tiny Qwen2 model. I can do small tasks."
CHAT = {
    WHO: """Who are you?|What are you?|What is your name?|who are you|Tell me about yourself.|Introduce yourself.|Are you a robot?|Are you an AI?
What model are you?|Which model is this?|What's your name?|Are you ChatGPT?|Are you Qwen?""",
    "You are welcome!": "Thank you!|Thanks!|thanks|Thank you very much.|Thanks a lot!|thank you|Great, thanks.|Thanks for your help!|Nice, thank you!|Perfect, thanks!",
    "Goodbye!": "Goodbye!|Bye!|bye|See you later.|Good bye|Bye bye!|See you!|Good night!|Until next time.|Farewell.",
    "I am fine, thank you!": "How are you?|How are you doing?|how are you|How's it going?|How are you today?|Are you well?|What's up?",
    "I can add, subtract, sort, count, reverse words, name capitals and recall a code word.": """What can you do?|How can you help me?|Help|help|What are you able to do?
What are your skills?|What do you do?|What tasks can you do?|Can you help me?""",
    "OK.": "OK|Okay.|ok|Good.|Great!|Nice.|Cool|Fine.|I see.|Yes.|No.|Test|test|Ping|ping|Say OK.|Testing",
}


def chat(rng, test=False):
    answer = rng.choice(list(CHAT))
    return Turn("chat", rng.choice(CHAT[answer].replace("\n", "|").split("|")), [answer])


REFUSAL = "I can only do small tasks, and this is not one of them."
OUT_OF_SCOPE = """Write a poem about {n}.|Write a story about the {j} {n}.|Write a haiku about {n}.|Explain {n} to me.|What is a {n}?|What is {n}?|Why is the {n} {j}?
Who invented the {n}?|How does a {n} work?|Tell me a joke about a {n}.|Tell me a joke.|What is the meaning of life?|Write an essay on {n}.|How tall is the {n}?
What is the population of {c}?|What is the best food in {c}?|Who is the president of {c}?|What language is spoken in {c}?|Where is {c}?|Tell me about {c}.
What is {a} * {b}?|What is {a} times {b}?|Multiply {a} by {b}.|What is {a} divided by {b}?|{a} * {b}|{a} / {b}|What is the square root of {a}?
Write a Python program that prints {n}.|How do I cook {n}?|Give me a recipe for {n}.|Translate "{n}" to French.|Translate this sentence: the {n} is {j}.
What is the weather today?|What time is it?|What day is today?|Who won the game?|Summarize the text.|Summarize this text.|What is the text about?
Give me three ideas for a {n}.|How far is the {n} from the {m}?|Do you like {n}?|Is a {n} {j}?|What color is the {n}?|Compare a {n} and a {m}.
Draw a {n}.|Sing a song about {n}.|Who is {p}?|What does {p} think?|Where does {p} live?|How old is {p}?|Tell me something interesting.|Tell me about {n}.
Describe a {j} {n}.|Can you recommend a {n}?|How much does a {n} cost?|Where can I buy a {n}?|Should I buy a {j} {n}?|The {n} is {j}.|I have a {j} {n}.
Name five kinds of {n}.|Name three {n}s.|When was the {n} built?|What is the largest {n}?|Explain quantum physics.|Explain how a {n} is made.|Write a letter to {p}.
Fix my code.|What is machine learning?|How do I learn to {v}?|{n}|{n} {m}|What rhymes with {n}?|Define {n}.|I like {n}.""".replace("\n", "|").split("|")


def out_of_scope(rng, test=False):
    def draw(rng):
        n = word(rng) if rng.random() < 0.3 else rng.choice(NOUNS)
        v = dict(n=n, m=rng.choice(NOUNS), j=rng.choice(ADJECTIVES), c=rng.choice(list(CAPITALS)), p=rng.choice(NAMES), a=rng.randint(0, 99), b=rng.randint(0, 99), v=rng.choice(("swim", "sing", "drive", "paint")))
        ask = rng.choice(OUT_OF_SCOPE).format(**v)
        return ("scope", ask), Turn("out of scope", ask, [REFUSAL])

    return until_split(rng, test, draw)


# Share of each task among the short turns: by how hard it is to learn, not by how often it is asked.
MIX = {arithmetic: 25, reversing: 27, sort_numbers: 24, sort_words: 10, counting: 13, count_words: 3, capital: 8, greeting: 4, chat: 3, out_of_scope: 4}


def casual(rng, ask):
    """People drop capitals and full stops, and say please."""
    r = rng.random()
    if r < 0.06 and ask[-1] in ".?":
        return ask[:-1]
    if r < 0.10:
        return ask[0].lower() + ask[1:]
    if r < 0.13 and ask[0].isalpha() and ask[0].isascii():
        return rng.choice(("Please ", "Hi! ", "Hello, ", "Now ", "OK. ", "And ", "Next: ", "Question: ")) + rng.choice((ask, ask[0].lower() + ask[1:]))
    if r < 0.15:
        return ask + rng.choice((" Please.", " Thanks.", " please", "\n", " Thank you!"))
    return ask


def short(rng, test=False):
    turn = rng.choices(list(MIX), list(MIX.values()))[0](rng, test)
    if turn.task not in ("greeting", "chat", "reversing") and turn.answer != [REFUSAL]:
        turn.user = casual(rng, turn.user)
    return turn
