"""Scenes: a generated world of drawn pictures with text, so that everything runs on a laptop with nothing downloaded.

    world.py       what a scene is: a small value, drawn at random, of the train or the test world
    draw.py        its picture
    language.py    its captions
    questions.py   its questions and answers
    documents.py   interleaved documents, made-up words, plain text, instruction turns
    write.py       all of it as a raw corpus folder

It is generated, and is called so wherever it is shown.
"""

from data_pipelines.scenes.write import write

__all__ = ["write"]
