"""The model of the paper's figure in plain torch: image encoder, connector, splice, decoder (MM1, section 3).

A tensor's name says its shape. One alphabet for all of it::

    B rows          T positions of a row      S sources of a batch
    I images        C channels                P patches of a picture    V vision width    N tokens of a picture
    D decoder width H heads                   G key-value heads         K head width      F feed-forward width
    L layers        E experts                 M tokens of all rows      R tokens times experts chosen for each

Nothing here knows a trainer, a rank, a tokenizer or a log.
"""
