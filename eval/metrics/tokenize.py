"""Splits captions as CIDEr's usual route does, without Java: Penn Treebank tokens, lower case, punctuation dropped.

The official route runs Stanford's ``PTBTokenizer -lowerCase`` (CoreNLP 3.4.1) and drops a list of punctuation tokens
(Chen et al. 2015, arXiv 1504.00325, section 4). Its surprises are kept, since scores depend on them: brackets become
``-lrb-`` and stay (the list only knows upper case), ``!!`` stays (it only knows ``!``), ``cannot`` splits and
``t-shirt`` does not::

    A man's T-shirt isn't red, (or so).    a man 's t-shirt is n't red -lrb- or so -rrb-
"""

from __future__ import annotations

import re

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

ESCAPES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ESCAPES |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "£": "#", "€": "$", "¢": "cents", "–": "--", "—": "--", "…": "..."}

# Words that are two tokens, by where they split.
JOINED = "can-not gon-na got-ta wan-na lem-me gim-me 't-is 't-was d'-ye"
SPLITS = {word.replace("-", ""): word.replace("-", " ") for word in JOINED.split()}

ABBREVIATIONS = (
    "mr mrs ms dr st jr sr prof gen col capt lt sgt rev sen gov rep hon pres vs inc co corp ltd bros etc ave blvd rd "
    "dept penn md calif jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri est ft mt ph al"
)
BEFORE_NUMBERS = "no fig vol ca pp"
# Before one of these, "B." is a letter that ends a sentence; elsewhere it is an initial and keeps its dot.
OPENERS = "A An And At After As But For He If In It She So Some That The Then There They This We When While You"


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


CLITIC = r"(?:s|m|d|re|ve|ll)\b"
TOKEN = re.compile(
    rf"""
      https?://\S*[^\s.,;:!?'")\]] | [\w.+-]+@[\w-]+(?:\.[\w-]+)+        # addresses
    | (?!\w\.\s+(?-i:{_any(OPENERS)})\b) (?:[^\W\d_]\.)+ (?!\w)         # u.s.  initials
    | \b{_any(ABBREVIATIONS)}\. | \b{_any(BEFORE_NUMBERS)}\.(?=\s*\d)      # mr.  no. 5
    | \w+(?=n't\b) | n't\b | '{CLITIC}                                    # is n't   man 's
    | (?<![\w.])[-+]?\d+(?:[.,:/]\d+)+ | (?<![\w.])[-+]?\.?\d+\b(?![-'])  # 1,000  -5.5  5:30  1/2
    | '(?:em|til|cause|n)\b'? | '\d\ds?\b                                  # 'em   '90s
    | \w(?:\.\w)+\b                                                      # w.e.b
    | @?\w+(?:[-_./&+]\w+ | '(?!{CLITIC})(?!t\b)\w+)*                     # t-shirt  black/white  o'clock
    | \.{{3}} | -{{2,}} | [!?]+ | '' | `` | [^\w\s]                        # punctuation, one by one
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize(caption: str) -> str:
    """A caption as space-separated tokens.

    >>> tokenize("Two dogs can't swim; one's asleep.")
    "two dogs ca n't swim one 's asleep"
    """
    text = caption.translate({ord("‘"): "'", ord("’"): "'", ord("“"): '"', ord("”"): '"'})
    tokens = (SPLITS.get(token, ESCAPES.get(token, token)) for token in map(str.lower, TOKEN.findall(text)))
    return " ".join(token for token in tokens if token not in DROPPED and token != '"')
