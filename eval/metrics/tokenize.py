"""Splits captions as CIDEr's usual route does, without Java: Penn Treebank tokens, lower case, punctuation dropped.

The official route runs Stanford's ``PTBTokenizer -lowerCase`` (CoreNLP 3.4.1) and drops a list of punctuation tokens
(Chen et al. 2015, arXiv 1504.00325, section 4). Its surprises are kept, since scores depend on them: brackets become
``-lrb-`` and stay (the list only knows upper case), ``!!`` stays (it only knows ``!``), ``cannot`` splits and
``t-shirt`` does not::

    A man's T-shirt isn't red, (or so).    a man 's t-shirt is n't red -lrb- or so -rrb-
"""

from __future__ import annotations

import re

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "---", "...", "....", ";"])
DROPPED |= frozenset('"“”‘’«»‹›‐‒')
LOST = re.compile(r"[\u00ad\ufeff]")  # what the tokenizer skips inside a word as well
APART = re.compile(r"[\u200b\U00010000-\U0010ffff]+|(?<!-)-{4}(?!-)")  # emoji, which it does not know, a long dash

ESCAPES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ESCAPES |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "£": "#", "€": "$", "¢": "cents", "–": "--", "—": "--", "…": "..."}
ESCAPES |= {":)": ":-rrb-", ":-)": ":--rrb-", ";)": ";-rrb-", ";-)": ";--rrb-", ":(": ":-lrb-", ":-(": ":--lrb-"}

# Words that are two tokens, by where they split.
JOINED = "can-not gon-na got-ta wan-na lem-me gim-me 't-is 't-was"
SPLITS = {word.replace("-", ""): word.replace("-", " ") for word in JOINED.split()}

ABBREVIATIONS = """
    mr mrs ms dr st jr sr prof gen col capt lt sgt rev sen gov rep hon pres vs inc co corp ltd bros etc ave blvd rd
    dept penn md calif jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri est ft mt ph al
    ariz colo conn ct dak fla ga ind kan kans ky mich minn mo mont neb nev okla tenn va vt wis wisc wyo bldg assn univ
    tel cmdr cpl maj messrs mme mlle adm atty cie plc rt pty cf mfg ext esq bhd spc intl sq alex wm jos invt elec natl
    (?-i:Ark) (?-i:Del) (?-i:Ill) (?-i:La) (?-i:Mass) (?-i:Miss) (?-i:Ore) (?-i:Pa) (?-i:Tex) (?-i:Wash)
"""
BEFORE_NUMBERS = "no nos fig figs art prop ca pp"
# Before one of these, or at the end of a caption, "B." is a letter that ends a sentence; elsewhere it is an initial and
# keeps its dot. At the end it depends on the next caption of the file, which mostly begins with A.
OPENERS = """
    A About According Additionally After An As At But He Her Here However If In It Many More Now Once One Other Our She
    Since So Some Such That The Their Then There These They This We What When While Yet You
"""


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


WORD = r"[^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)*"  # a letter first; tall.the stays one
PART = r"[a-z0-9]+(?:-[a-z]+){0,2}"
CLITIC = r"['’](?:s|m|d|re|ve|ll)\b"
NOT = r"n['’]t\b"
TOKEN = re.compile(
    rf"""
      https?://\S*[^\s.,;:!?'")\]] | [\w.+-]+@[\w-]+(?:\.[\w-]+)*          # addresses
    | www\.[a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/[\w./~%-]*[\w/])?
    | </?[a-z][^<>\s]*> | [:;]-?[()]                                       # tags, :)
    | {PART}(?:/{PART}){{1,2}}                                             # black/white  w/o  1/2
    | [a-z0-9][a-z0-9.,]*(?:-(?:[a-z](?:\.[a-z])+\.|[a-z0-9]+))+(?![^\W_])  # t-shirt  6.5-meter  u.s.-led
    | (?-i:[A-Z]+(?:[+&][A-Z]+)+) | c\+\+ | c\#                            # AT&T
    | (?:[^\W\d_]\.){{2,}}(?!\w) | ph\.d\.                                 # u.s.
    | (?![a-z]\.\s*(?:$|\s(?-i:{_any(OPENERS)})\b)) [^\W\d_]\.(?!\w)         # initials
    | \b{_any(ABBREVIATIONS)}\.(?!\w) | \b{_any(BEFORE_NUMBERS)}\.(?=\s*\d)   # mr.  no. 5
    | {WORD}(?={NOT}) | {NOT} | {CLITIC}                                   # is n't   man 's
    | y['’](?=\w) | [dol]['’][^\W\d_][^\W_]* | c['’]mon\b | d['’]ye\b      # y' all   o'clock
    | [^\W\d_]*[aeiouy]['’](?:[aeiou]|(?-i:[A-Z]))[^\W\d_]*                # ma'am
    | (?:dunkin|somethin|ol)['’](?!\w) | [ldj]['’]                         # ol'
    | ['’](?:em|till?|cause)\b | ['’]n\b['’]? | ’n | ['’](?=tis\b|twas\b)t(?:is|was) | (?<!\d)['’]\d\ds?\b
    | \#[^\W\d_]+ | \b(?-i:US|HK|A|C)\$                                    # #tag  us$
    | (?=[a-z0-9-]+_)[a-z0-9]+(?:[_-][a-z0-9]+)+ | _+
    | [-+]?\d*(?:[.,:]\d+)+ | [-+]\d+ | @?[^\W_]+[-‐‑][^\W_]+(?:[-‐‑][^\W_]+)*     # 1,000  -5.5  5:30
    | @?{WORD} | [^\W_]+                                                   # words  5m
    | \.{{3,}} | -{{2,}} | \*+ | \#+ | [!?]+ | '' | `` | [^\w\s]                 # punctuation, one by one
    """,
    re.VERBOSE | re.IGNORECASE,
)
NORMAL = re.compile(r"’(?=(?:s|m|d|re|ve|ll|em|till?|cause|tis|twas|n|\d\ds?)$)|(?<=^n)’(?=t$)")  # of a whole token
FRACTION = re.compile("([½¼¾])")  # one by itself in 1½


def tokenize(caption: str) -> str:
    """A caption as space-separated tokens.

    >>> tokenize("Two dogs can't swim; one's asleep.")
    "two dogs ca n't swim one 's asleep"
    """
    plain = FRACTION.sub(r" \1 ", APART.sub(" ", LOST.sub("", caption)))
    found = (NORMAL.sub("'", token.lower()) for token in TOKEN.findall(plain))
    escaped = (SPLITS.get(token, ESCAPES.get(token, token)) for token in found)
    return " ".join(token for token in escaped if token not in DROPPED)
