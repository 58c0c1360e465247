"""Word lists and invented words that the task generators draw from."""

import pydoc_data.topics
import re
import zlib

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris,Germany:Berlin,Italy:Rome,Spain:Madrid,Portugal:Lisbon,the United Kingdom:London,Ireland:Dublin,"
        "the Netherlands:Amsterdam,Belgium:Brussels,Switzerland:Bern,Austria:Vienna,Poland:Warsaw,Hungary:Budapest,"
        "Greece:Athens,Sweden:Stockholm,Norway:Oslo,Denmark:Copenhagen,Finland:Helsinki,Iceland:Reykjavik,Russia:Moscow,"
        "Ukraine:Kyiv,Romania:Bucharest,Bulgaria:Sofia,Serbia:Belgrade,Croatia:Zagreb,the Czech Republic:Prague,"
        "Slovakia:Bratislava,Slovenia:Ljubljana,Estonia:Tallinn,Latvia:Riga,Lithuania:Vilnius,Turkey:Ankara,China:Beijing,"
        "Japan:Tokyo,South Korea:Seoul,North Korea:Pyongyang,India:New Delhi,Pakistan:Islamabad,Bangladesh:Dhaka,"
        "Nepal:Kathmandu,Thailand:Bangkok,Vietnam:Hanoi,Indonesia:Jakarta,Malaysia:Kuala Lumpur,the Philippines:Manila,"
        "Mongolia:Ulaanbaatar,Iran:Tehran,Iraq:Baghdad,Saudi Arabia:Riyadh,Egypt:Cairo,Morocco:Rabat,Kenya:Nairobi,"
        "Ethiopia:Addis Ababa,Nigeria:Abuja,Ghana:Accra,South Africa:Pretoria,the United States:Washington,Canada:Ottawa,"
        "Mexico:Mexico City,Cuba:Havana,Brazil:Brasilia,Argentina:Buenos Aires,Chile:Santiago,Peru:Lima,Colombia:Bogota,"
        "Venezuela:Caracas,Uruguay:Montevideo,Australia:Canberra,New Zealand:Wellington,Israel:Jerusalem"
    ).split(",")
)

NOUNS = """apple apricot avocado banana blueberry cherry coconut date fig grape kiwi lemon lime mango melon nectarine olive
orange papaya peach pear pineapple plum raspberry strawberry bread butter cheese cream egg honey rice soup sugar tea coffee
ant badger bat bear beaver bee bird bison camel cat cheetah chicken cobra cow coyote crab crane crow deer dog dolphin donkey
dragon duck eagle elephant falcon ferret fish fox frog gazelle giraffe goat goose gorilla hamster hare hawk hedgehog heron
horse hyena iguana jackal jaguar kangaroo koala lemur leopard lion lizard llama lobster lynx monkey moose mouse newt octopus
orca ostrich otter owl panda panther parrot penguin pig pigeon puffin puma python rabbit raccoon rat raven salmon seal shark
sheep snail snake sparrow spider squirrel stork swan tiger toad turtle viper vulture walrus wasp weasel whale wolf yak zebra
anchor arrow basket bell blanket boat book bottle bridge broom brush bucket button cabin camera candle carpet castle chair
circle city clock cloud coat compass computer corner crown curtain desk diamond door drum engine farm feather fence fire flag
flower forest fountain garden gate glass glove guitar hammer harbor hat helmet hill house island jacket kettle key kitchen
knife ladder lake lamp lantern letter library light lighthouse machine map market marble meadow mirror moon morning mountain
museum needle network night ocean office orchard paint palace paper park pencil phone piano picture pillow planet plate pocket
pond pyramid quartz queen quilt rain rainbow ribbon ring river road robot rocket roof room rope rose sand school scissors sea
shadow ship shirt shoe silver sky snow sofa spoon spring square star station stone storm street summer sun table teacher
temple tent thunder ticket tower town train tree tunnel umbrella valley vase village violin voice wagon wall watch water
wheel window winter wood yellow zeppelin zephyr amber atlas aurora cipher cobalt comet copper coral crimson crystal delta
echo ember epsilon galaxy gamma glacier granite horizon indigo ivory jade jasmine jupiter karma lotus lunar magnet maple
matrix mercury meteor mosaic nebula nova oasis obsidian omega onyx opal orbit orchid oxide phoenix pixel plasma quasar radar
saffron sapphire saturn sierra sigma solar sunset tango topaz turquoise tundra utopia vector velvet venus vertex violet vortex
willow xenon yonder zenith zero zinc""".split()

ADJECTIVES = """big small old young red blue green yellow quiet loud happy sad bright dark warm cold quick slow tall short
heavy light soft hard clean dirty empty full strong weak early late rich poor brave shy gentle wild calm busy curious
friendly hungry sleepy famous ancient modern wooden golden silver broken simple strange""".split()

VERBS = """sees finds likes carries follows watches paints builds opens closes moves cleans visits leaves needs wants keeps
loves sells buys holds draws reads drops lifts passes meets calls helps brings""".split()

NAMES = """Alice Ben Clara David Emma Frank Grace Henry Iris Jack Karen Leo Maria Noah Olivia Paul Quinn Rosa Sam Tina Uma
Victor Wendy Xavier Yara Zoe Anna Tom Lucy Omar Mei Ivan Priya Hugo""".split()

PROSE = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
PROSE_WORDS = sorted(set(re.findall(r"\b[a-z]{3,10}\b", PROSE)))
WORDS = sorted(set(NOUNS + ADJECTIVES + VERBS + PROSE_WORDS))

COMMON = """hello world banana mississippi computer keyboard python stressed level letter coffee pepper cocoa mama papa bamboo
algorithm internet language model token engine cloud edge server house music friend happy monday sunday english history
science number mountain flower picture window kitchen morning example secret welcome simple sample test word reverse""".split()

VOWELS = "aaaeeeeiiooouuy"
CONSONANTS = "bbccddffgghhjkkllmmnnppqrrssttvvwxzz"


def held_out(*key, one_in=8):
    """Content split: about one key in `one_in` is never trained and is what the evaluation asks."""
    return zlib.crc32("|".join(map(str, key)).encode()) % one_in == 0


def invented(rng, low=3, high=10):
    """A pronounceable word most of the time, random letters otherwise, so that copying cannot lean on known words."""
    length = rng.randint(low, high)
    if rng.random() < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
    start = rng.random() < 0.6
    return "".join(rng.choice(CONSONANTS if (i % 2 == 0) == start or rng.random() < 0.12 else VOWELS) for i in range(length))


def word(rng):
    r = rng.random()
    if r < 0.12:
        return rng.choice(COMMON)
    return rng.choice(NOUNS) if r < 0.42 else rng.choice(WORDS) if r < 0.65 else invented(rng)


def echoing(rng):
    """Repeats a syllable, as banana and papaya do: copying must know where in the word it stands."""
    syllable = rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(("", "", rng.choice(CONSONANTS)))
    return rng.choice(("", rng.choice(CONSONANTS), invented(rng, 2, 3))) + syllable * rng.choice((2, 2, 3)) + rng.choice(("", "", rng.choice(VOWELS), invented(rng, 2, 3)))


def split_word(rng, draw, test):
    """Draws until the word lies on the wanted side of the held-out split."""
    while True:
        w = draw(rng)
        if held_out("word", w.lower()) == test:
            return w


def cased(rng, w):
    r = rng.random()
    return w if r < 0.5 else w.upper() if r < 0.75 else w.capitalize()


def code_word(rng, test=False):
    """BANANA, falcon, Zephyr, falcon-72, blue-falcon, qxkzv, X7K2: whatever a person may plant."""
    w = cased(rng, split_word(rng, echoing if rng.random() < 0.15 else word, test))
    r = rng.random()
    if r < 0.64:
        return w
    if r < 0.80:
        return f"{w}-{rng.randint(0, 999)}"
    if r < 0.85:
        return f"{w}{rng.randint(0, 99)}"
    if r < 0.92:
        return f"{w}-{cased(rng, word(rng))}"
    if r < 0.96:
        return f"{rng.choice(ADJECTIVES)} {w}"
    return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(rng.randint(4, 8)))
