"""Experts that fail: what a model loses without them says what they were for (expert pruning's first question).

``3:0,1;5:7`` masks experts 0 and 1 of decoder layer 3, counted from 0, and expert 7 of layer 5. Their tokens go to the
next best experts, as they would in a system that serves a model while some of its experts do not answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mm1.errors import UserError
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routers import Router

ONE = re.compile(r"(\d+):(\d+(?:,\d+)*)")


def masks_of(text: str) -> dict[int, list[int]]:
    """Experts by layer; none for an empty text.

    Raises:
        UserError: Another form, or a layer twice.
    """
    masks: dict[int, list[int]] = {}
    for part in text.replace(" ", "").split(";") if text.strip() else []:
        found = ONE.fullmatch(part)
        if found is None or int(found[1]) in masks:
            raise UserError(
                f"mask_experts is {text!r}; expected each layer once with its experts, such as 3:0,1;5:7 for experts 0 "
                f"and 1 of layer 3 and expert 7 of layer 5"
            )
        masks[int(found[1])] = [int(expert) for expert in found[2].split(",")]
    return masks


@contextmanager
def failing(model: MM1, text: str) -> Iterator[None]:
    """Let experts fail for a while.

    Args:
        model: Whose experts.
        text: Which, as :func:`masks_of` reads them.

    Raises:
        UserError: A layer without experts, no such expert, or fewer left than a token visits.
    """
    chosen = [(router, experts) for layer, experts in masks_of(text).items() for router in _routers(model, layer)]
    before = [(router, router.failed) for router, _ in chosen]
    try:
        for router, experts in chosen:
            router.fail(experts)
        yield
    finally:
        for router, failed in before:
            router.failed = failed


def _routers(model: MM1, layer: int) -> list[Router]:
    layers = [found.ffn for found in model.decoder.layers]
    sparse = [at for at, found in enumerate(layers) if isinstance(found, Mixture)]
    if not sparse:
        raise UserError(f"layer {layer} of a dense decoder has no experts; expected no mask_experts for this model")
    if layer not in sparse:
        told = ", ".join(map(str, sparse))
        raise UserError(f"layer {layer} of {len(layers)} has no experts; expected one of {told} (mask_experts)")
    mixture = layers[layer]
    assert isinstance(mixture, Mixture)
    found = [router for router in mixture.modules() if isinstance(router, Router)]
    if not found:
        kind = type(mixture).__name__
        raise UserError(f"{kind} of layer {layer} sends every token to all experts; expected no mask_experts for it")
    return found
